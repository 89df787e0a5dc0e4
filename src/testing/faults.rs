//! Every test that `docs/faults.md` names is there.

#[test]
fn the_tests_of_the_faults_are_there() {
    let page = std::fs::read_to_string("docs/faults.md").unwrap();
    let mut count = 0;
    for row in page.lines().filter(|line| line.starts_with('|')) {
        // `::name` is in the file that was named before it.
        let mut file = "";
        for (path, name) in
            row.split('`').filter_map(|word| word.split_once("::")).filter(|(path, _)| path.is_empty() || path.ends_with(".rs"))
        {
            file = if path.is_empty() { file } else { path };
            let code = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(code.contains(&format!("fn {name}(")), "{file} has no test `{name}`");
            count += 1;
        }
    }
    assert!(count > 40, "only {count} tests are named");
}
