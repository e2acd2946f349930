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
