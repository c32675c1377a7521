//! `docs/metrics.md`: what is below its mark is made of the program's own table.

use super::{cell, is_the_page, read};

const MARK: &str = "<!-- generated below -->\n";

#[test]
fn the_page_has_every_family() {
    let page = read("docs/metrics.md");
    let (head, _) = page.split_once(MARK).expect("the mark");
    let mut text = format!("{head}{MARK}\n| name | type | labels | what |\n|---|---|---|---|\n");
    for family in pdrelay::metrics::manual() {
        let label = |(name, values): &(&str, &[&str])| match values {
            [] => format!("`{name}`"),
            values => format!("`{name}`: {}", values.join(", ")),
        };
        let labels: Vec<String> = family.labels.iter().map(label).collect();
        let (name, labels) = (family.name, cell(&labels.join("; ")));
        text += &format!(
            "| `{name}` | {} | {labels} | {} |\n",
            family.kind,
            cell(family.help)
        );
    }
    is_the_page("docs/metrics.md", &text);
}
