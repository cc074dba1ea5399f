//! Real input: the Unicode character database as Debian ships it, worked on
//! inside the sandbox, the report checked against our own count.

use std::collections::BTreeMap;

use cloister_testkit::{As, Stack};
use cloister_types::event::EventKind;
use serde_json::json;

const DATA: &str = "/usr/share/unicode/UnicodeData.txt";

const PROGRAM: &str = r##"BEGIN { FS = ";" }
{ lines++; category[$3]++; if ($6 != "") decomposed++; if ($3 == "Nd") { n = split($2, words, " "); last[words[n]]++ } }
END {
  printf "# Unicode report\n\nrecords %d\ndecomposed %d\n", lines, decomposed
  for (c in category) printf "category %s %d\n", c, category[c] | "sort"
  close("sort")
  for (w in last) printf "digit %s %d\n", w, last[w] | "sort"
}
"##;

#[tokio::test]
async fn a_report_over_the_unicode_database_is_right() {
    let Ok(data) = std::fs::read_to_string(DATA) else {
        panic!("{DATA} is missing: apt-get install unicode-data (cargo xtask test does it)");
    };
    let mut categories: BTreeMap<&str, usize> = BTreeMap::new();
    let mut decomposed = 0;
    for line in data.lines() {
        let fields: Vec<&str> = line.split(';').collect();
        *categories.entry(fields[2]).or_default() += 1;
        decomposed += usize::from(!fields[5].is_empty());
    }
    assert!(data.len() > 1_000_000, "a data set of some size");
    for who in As::all() {
        let stack = Stack::start_as(who).await;
        let owner = stack.session().await;
        stack.client.upload(&owner, "data/UnicodeData.txt", data.clone()).await.unwrap();
        let session = stack.session_with(json!({"file_access": {"read": ["data"], "write": ["report"]}})).await.id;
        let turn = stack
            .play(&session, &[
                json!({"tool": "bash", "input": {"command": "wc -l data/UnicodeData.txt; echo x > data/no; echo $?"}}),
                json!({"tool": "write_file", "input": {"path": "report/count.awk", "content": PROGRAM}}),
                json!({"tool": "bash", "input": {"command": "awk -f report/count.awk data/UnicodeData.txt > report/unicode.md"}}),
                json!({"tool": "search_files", "input": {"path": "report", "pattern": "^category L[lu] ", "glob": "*.md"}}),
                json!({"expect": "category Ll \\d+"}),
                json!({"say": "The report is in report/unicode.md."}),
            ])
            .await;
        assert_eq!(turn.end(), EventKind::MessageCompleted);
        assert!(turn.text().starts_with("The report"), "{}", turn.text());
        let report = stack.client.download(&session, "report/unicode.md").await.unwrap().bytes().await.unwrap();
        let report = String::from_utf8(report).unwrap();
        assert!(report.contains(&format!("records {}\n", data.lines().count())));
        assert!(report.contains(&format!("decomposed {decomposed}\n")));
        for (category, count) in &categories {
            assert!(report.contains(&format!("category {category} {count}\n")), "{who:?} {category}: {report}");
        }
        assert!(!stack.workspace().join("data/no").exists());
    }
}
