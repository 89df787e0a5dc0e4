//! An estimator of one's own in the loop of DLMI.

fn main() {}
