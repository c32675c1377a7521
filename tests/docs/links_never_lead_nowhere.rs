//! Links between files of the repository lead to files that are there.

use super::{pages, read, root};

#[test]
fn links_lead_to_files() {
    let mut count = 0;
    for page in pages().into_iter().chain(["README.md".into()]) {
        let text = read(&page);
        for rest in text.split("](").skip(1) {
            let link = rest.split([')', '#']).next().unwrap_or("");
            if link.is_empty() || link.contains("://") {
                continue;
            }
            let to = root().join(&page).parent().unwrap().join(link);
            assert!(to.exists(), "{}: {link}", page.display());
            count += 1;
        }
    }
    assert!(count > 20, "only {count} links were found");
}

/// Whoever opens `docs/` finds every page.
#[test]
fn the_index_has_all_pages() {
    let index = read("docs/README.md");
    for page in pages() {
        let name = page.strip_prefix("docs").unwrap().display().to_string();
        assert!(
            name == "README.md" || index.contains(&format!("]({name})")),
            "{name}"
        );
    }
}
