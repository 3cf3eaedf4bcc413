use super::*;

#[test]
fn no_word_is_missing_in_a_language() {
    let english = EN.all();
    let chinese = ZH.all();
    assert_eq!(english.len(), chinese.len());
    // Words that are the same in both.
    let same: [&str; 0] = [];
    for ((key, en), (_, zh)) in english.iter().zip(&chinese) {
        assert!(!en.trim().is_empty() && !zh.trim().is_empty(), "{key} is empty");
        assert_eq!(en.matches("{}").count(), zh.matches("{}").count(), "{key}: places of values");
        assert!(!en.chars().any(|c| ('\u{3000}'..='\u{ffef}').contains(&c)), "{key}: {en} is not English");
        let translated = zh.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c));
        assert!(translated || same.contains(key), "{key}: {zh} is not Chinese");
        assert!(!en.contains('\u{2014}'), "{key}: {en}");
    }
}

#[test]
fn the_language_is_the_one_that_the_browser_likes_best() {
    for (header, language) in [
        ("", Language::English),
        ("de, fr;q=0.5", Language::English),
        ("zh-CN,zh;q=0.9,en;q=0.8", Language::Chinese),
        ("en-GB,en;q=0.9,zh;q=0.8", Language::English),
        ("de, zh;q=0.3, en;q=0.2", Language::Chinese),
        ("zh;q=0, en;q=x,;;=,", Language::English),
    ] {
        assert_eq!(Language::accepted(header), language, "{header}");
    }
}

#[test]
fn values_go_where_they_belong() {
    assert_eq!(fill("{} of {}", &["1", "{}"]), "1 of {}");
    assert_eq!(fill("none", &["1"]), "none");
    assert_eq!(fill("{} {}", &["1"]), "1 ");
}
