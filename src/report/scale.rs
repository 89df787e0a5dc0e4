//! Scales of axes and their ticks, and numbers as people read them.

/// From numbers to a share of the axis.
#[derive(Debug, Clone, PartialEq)]
pub enum Scale {
    /// From … to.
    Linear(f64, f64),
    /// As linear, over a few given places.
    Places(f64, f64),
    /// Over logarithms, from … to, both greater than 0.
    Log(f64, f64),
    /// So many categories, one above the other.
    Lanes(usize),
}

impl Scale {
    /// Over some places, with room on both sides.
    pub fn places(places: &[f64]) -> Self {
        let (low, high) = extremes(places.iter().copied());
        let room = if high > low { 0.09 * (high - low) } else { 1.0 };
        Self::Places(low - room, high + room)
    }

    /// Over positive numbers, with room on both sides.
    pub fn log(numbers: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = extremes(numbers.into_iter().filter(|x| *x > 0.0 && x.is_finite()));
        match low <= high {
            true => Self::Log((low / 1.15).max(f64::MIN_POSITIVE), (high * 1.15).min(f64::MAX)),
            false => Self::Log(1.0, 10.0),
        }
    }

    /// Over shares, from 0 to a round number that none of them exceeds.
    pub fn shares(shares: impl IntoIterator<Item = f64>) -> Self {
        let largest = shares.into_iter().fold(0.0, f64::max);
        Self::Linear(0.0, [0.1, 0.2, 0.5].into_iter().find(|end| *end >= largest).unwrap_or(1.0))
    }

    /// Where a number is on the axis, from 0 to 1.
    pub fn share(&self, x: f64) -> f64 {
        match *self {
            Self::Linear(low, high) | Self::Places(low, high) => (x - low) / (high - low),
            Self::Log(low, high) => (x.max(low).ln() - low.ln()) / (high.ln() - low.ln()),
            Self::Lanes(n) => (x + 0.5) / n as f64,
        }
    }

    /// Whether it is over a few places where all series have points.
    pub fn is_points(&self) -> bool {
        matches!(self, Self::Places(..))
    }

    /// Ticks at round numbers.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        match *self {
            Self::Log(low, high) => log_ticks(low, high),
            Self::Linear(low, high) | Self::Places(low, high) => linear_ticks(low, high),
            Self::Lanes(_) => Vec::new(),
        }
    }
}

fn extremes(numbers: impl Iterator<Item = f64>) -> (f64, f64) {
    numbers.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
}

/// Powers of ten, at most about eight; over less than two decades their halves and fifths too.
fn log_ticks(low: f64, high: f64) -> Vec<(f64, String)> {
    let decades = (low.log10().floor() as i32..=high.log10().ceil() as i32).collect::<Vec<_>>();
    let inside = |x: f64| (low..=high).contains(&x);
    if high / low < 100.0 {
        let all = decades.iter().flat_map(|decade| [1.0, 2.0, 3.0, 5.0, 7.0].map(|digit| digit * 10f64.powi(*decade)));
        let wide = high / low > 12.0;
        let digits = |x: &f64| !wide || [1, 2, 5].contains(&((x / 10f64.powf(x.log10().floor() + 1e-9)).round() as u32));
        return all.filter(|x| inside(*x)).filter(digits).map(|x| (x, number(x))).collect();
    }
    let every = decades.iter().filter(|decade| inside(10f64.powi(**decade))).count().div_ceil(9) as i32;
    let powers = decades.into_iter().filter(|decade| decade.rem_euclid(every) == 0);
    powers.map(|decade| (10f64.powi(decade), power(decade))).filter(|(x, _)| inside(*x)).collect()
}

fn linear_ticks(low: f64, high: f64) -> Vec<(f64, String)> {
    let raw = (high - low) / 5.0;
    let unit = 10f64.powf(raw.log10().floor());
    let step = unit * [1.0, 2.0, 5.0, 10.0].into_iter().find(|digit| digit * unit >= raw).unwrap_or(10.0);
    let first = (low / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|x| *x <= high + 1e-9 * step).map(|x| (x, number(x))).collect()
}

/// `10⁻³`; small powers as they are.
fn power(decade: i32) -> String {
    const RAISED: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    if (-1..=2).contains(&decade) {
        return number(10f64.powi(decade));
    }
    let digits = decade.unsigned_abs().to_string().bytes().map(|digit| RAISED[usize::from(digit - b'0')]).collect::<String>();
    format!("10{}{digits}", if decade < 0 { "⁻" } else { "" })
}

/// Three digits that count: `0.042`, `3.5k`, `1.2M`, `2.1e-7`.
pub fn number(x: f64) -> String {
    let plain = |x: f64| {
        let digits = (2 - x.abs().log10().floor() as i32).clamp(0, 5) as usize;
        let text = format!("{x:.digits$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    };
    match x.abs() {
        0.0 => "0".to_owned(),
        size if !size.is_finite() => x.to_string(),
        size if !(1e-3..1e12).contains(&size) => format!("{x:.1e}"),
        size if size >= 1e9 => format!("{}G", plain(x / 1e9)),
        size if size >= 1e6 => format!("{}M", plain(x / 1e6)),
        size if size >= 1e4 => format!("{}k", plain(x / 1e3)),
        _ => plain(x),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(scale: &Scale) -> Vec<String> {
        scale.ticks().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_stand_at_round_numbers() {
        assert_eq!(texts(&Scale::Linear(0.0, 1.0)), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(texts(&Scale::Log(0.9, 110.0)), ["1", "10", "100"]);
        assert_eq!(texts(&Scale::Log(1e-5, 2e3)), ["10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "0.1", "1", "10", "100", "10³"][..].to_vec());
        assert_eq!(texts(&Scale::Log(1800.0, 21000.0)), ["2000", "3000", "5000", "7000", "10k", "20k"]);
        assert_eq!(texts(&Scale::log([])), ["1", "2", "3", "5", "7", "10"]);
        assert!(texts(&Scale::Log(1e-30, 1e30)).len() < 10);
    }

    #[test]
    fn numbers_have_three_digits() {
        let of = [0.0, 0.25, 0.041_666, 12.0, 1234.6, 45_678.0, 6_906_479.5, 3.3e-9, -0.5, 1e15];
        assert_eq!(of.map(number), ["0", "0.25", "0.0417", "12", "1235", "45.7k", "6.91M", "3.3e-9", "-0.5", "1.0e15"]);
    }

    #[test]
    fn a_share_is_of_the_axis() {
        assert_eq!(Scale::Log(1.0, 100.0).share(10.0), 0.5);
        assert_eq!(Scale::Linear(2.0, 4.0).share(3.0), 0.5);
        assert_eq!(Scale::Lanes(2).share(1.0), 0.75);
        assert_eq!(Scale::places(&[3.0]).share(3.0), 0.5);
        assert_eq!(Scale::Log(1.0, 100.0).share(0.0), 0.0);
        assert_eq!([0.0, 0.15, 0.4, 0.6].map(|share| Scale::shares([share])), [0.1, 0.2, 0.5, 1.0].map(|end| Scale::Linear(0.0, end)));
    }
}
