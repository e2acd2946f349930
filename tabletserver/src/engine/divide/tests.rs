use super::*;

#[test]
fn a_key_between_two_is_above_the_first_and_not_above_the_second() {
    for (low, high) in [("a", "b"), ("a", "a\0"), ("row-0001", "row-0002"), ("", "z"), ("abc", "abd"), ("a", "azzzz")] {
        let middle = between(low.as_bytes(), high.as_bytes());
        assert!(middle[..] > *low.as_bytes() && middle[..] <= *high.as_bytes(), "{low} {high}: {middle:?}");
    }
    assert_eq!(between(b"a", b"c"), b"b");
    let far = between(b"user-000", b"user-999");
    assert!(far[..] > *b"user-3".as_slice() && far[..] < *b"user-6".as_slice(), "{far:?}");
}

#[test]
fn one_row_far_away_does_not_hide_where_the_others_are() {
    let (mut low, mut high) = (b"abcddd1".to_vec(), b"zzz".to_vec());
    for _ in 0..120 {
        let middle = between(&low, &high);
        if middle[..] > *b"abcddd5".as_slice() {
            high = middle;
        } else {
            low = middle;
        }
        if high.starts_with(b"abcddd") {
            return;
        }
    }
    panic!("{low:?} {high:?}");
}
