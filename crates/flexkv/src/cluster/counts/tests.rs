//! Metrics as nodes tell them.

use super::*;

#[test]
fn counters_of_several_nodes_are_added_by_name_and_labels() {
    let mut counts = Counts::default();
    for node in ["a", "b"] {
        counts.add_text(&format!(
            "# TYPE flexkv_x counter\nflexkv_x{{node=\"{node}\"}} 3\n\n\
             flexkv_y{{node=\"{node}\",tier=\"ssd\"}} 4\nflexkv_z 0.5\nflexkv_free 7\n"
        ));
    }
    assert_eq!(counts.of("flexkv_x"), 6);
    assert_eq!(counts.of("flexkv_y{tier=\"ssd\"}"), 8);
    assert_eq!(counts.of("flexkv_free"), 14);
    assert_eq!(counts.of("flexkv_z"), 0, "no count");
}
