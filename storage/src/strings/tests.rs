//! What one operation makes of one key.

use super::*;
use crate::hashes::HashSlot;

fn set(value: Option<&str>, action: StringAction) -> (StringsReply, Slot) {
    let mut slot = Slot::found(value.map(IVec::from), None);
    let reply = apply(&action, 1_000, &mut Carried::default(), &mut slot, None);
    (reply, slot)
}

#[test]
fn a_hash_of_which_not_all_is_known_is_not_copied_and_what_a_range_makes_counts() {
    let copy = |replace| StringAction::Transfer { tree: TreeId(0), key: "to".into(), copy: true, replace };
    let mut slot = Slot::found(None, None);
    slot.hash = Some(HashSlot::found(HashId { base: 1, ordinal: 0 }, 3));
    let mut other = Slot::found(Some("old".into()), None);
    let mut carry = |replace, other: &mut Slot| {
        apply(&copy(replace), 1_000, &mut Carried::default(), &mut slot, Some(other))
    };
    assert_eq!(carry(false, &mut other), StringsReply::Integer(0));
    assert_eq!(carry(true, &mut other), StringsReply::Failed(StringsFailure::TooMuchWork));
    assert_eq!(other, Slot::found(Some("old".into()), None));

    let action = StringAction::Overwrite { offset: 1_000, value: "x".into() };
    let operation = StringsOperation { tree: TreeId(0), key: "k".into(), action };
    assert!(operation.bytes() > 1_000);
}

#[test]
fn only_the_canonical_text_of_an_integer_is_one() {
    for number in [0, 1, -1, 10, i64::MAX, i64::MIN] {
        assert_eq!(parse_integer(number.to_string().as_bytes()), Some(number));
    }
    for text in [
        "",
        "-",
        "+1",
        " 1",
        "1 ",
        "01",
        "-0",
        "00",
        "1a",
        "0x1",
        "1.0",
        "9223372036854775808",
        "-9223372036854775809",
    ] {
        assert_eq!(parse_integer(text.as_bytes()), None, "{text:?}");
    }
}

#[test]
fn fractions_are_added_decimally() {
    for (one, other, sum) in [
        ("10.50", "0.1", "10.6"),
        ("5.0e3", "2.0e2", "5200"),
        ("0.1", "0.2", "0.3"),
        ("-5", "5", "0"),
        ("-0.5", "0.25", "-0.25"),
        ("3", "1.0000000000000001", "4.0000000000000001"),
        ("0", "1e-17", "0.00000000000000001"),
        ("0", "4e-18", "0"),
        ("0", "1e-400", "0"),
        ("1e25", "1e25", "20000000000000001811939328"),
        ("99999999999999999999", "1", "100000000000000000000"),
        (".5", "5.", "5.5"),
    ] {
        let (reply, slot) = set(Some(one), StringAction::AddFloat { delta: other.into() });
        assert_eq!(reply, StringsReply::Value(Some(sum.into())), "{one} + {other}");
        assert_eq!(slot.value, Some(sum.into()));
    }
    for (one, other, failure) in [
        ("a", "1", StringsFailure::NotAFloat),
        ("", "1", StringsFailure::NotAFloat),
        (" 1", "1", StringsFailure::NotAFloat),
        ("1", "nan", StringsFailure::NotAFloat),
        ("1", "inf", StringsFailure::NotFinite),
        ("1.7e308", "1.7e308", StringsFailure::NotFinite),
    ] {
        let (reply, slot) = set(Some(one), StringAction::AddFloat { delta: other.into() });
        assert_eq!(reply, StringsReply::Failed(failure), "{one} + {other}");
        assert_eq!(slot, Slot::found(Some(one.into()), None));
    }
}

#[test]
fn a_part_of_a_value_is_counted_from_either_end() {
    for (start, end, part) in [
        (0, 3, "This"),
        (-3, -1, "ing"),
        (0, -1, "This is a string"),
        (10, 100, "string"),
        (5, 2, ""),
        (-1, -5, ""),
        (-100, 1, "Th"),
        (-100, -50, "T"),
        (16, 20, ""),
        (i64::MIN, i64::MAX, "This is a string"),
    ] {
        let (reply, _) = set(Some("This is a string"), StringAction::Range { start, end });
        assert_eq!(reply, StringsReply::Value(Some(part.into())), "{start} to {end}");
    }
    assert_eq!(set(None, StringAction::Range { start: 0, end: -1 }).0, StringsReply::Value(Some("".into())));
}

#[test]
fn writing_behind_the_end_puts_zeros_between() {
    let over = |offset, value: &str| StringAction::Overwrite { offset, value: value.into() };
    let (reply, slot) = set(Some("ab"), over(4, "cd"));
    assert_eq!((reply, slot.value), (StringsReply::Integer(6), Some("ab\0\0cd".into())));
    assert_eq!(set(Some("hello"), over(1, "ipp")).1.value, Some("hippo".into()));
    let (reply, slot) = set(None, over(7, ""));
    assert_eq!((reply, slot), (StringsReply::Integer(0), Slot::default()));
    for offset in [MAX_STRING_LENGTH as u64, u64::MAX] {
        assert_eq!(set(None, over(offset, "a")).0, StringsReply::Failed(StringsFailure::TooLong));
    }
    let longest = IVec::from(vec![b'x'; MAX_STRING_LENGTH]);
    let mut slot = Slot::found(Some(longest.clone()), None);
    let mut add = |value: &str| {
        let action = StringAction::Append { value: value.into() };
        apply(&action, 1_000, &mut Carried::default(), &mut slot, None)
    };
    assert_eq!(add(""), StringsReply::Integer(MAX_STRING_LENGTH as i64));
    assert_eq!(add("x"), StringsReply::Failed(StringsFailure::TooLong));
    assert_eq!(slot.value, Some(longest));
}

#[test]
fn a_later_time_leaves_a_key_where_it_is_until_an_entry_removes_it() {
    let mut reply = StringsReply::Expires { at_ms: Some(Some(1_500)), now_ms: 1_000 };
    for (time_ms, now_ms) in [(1_400, 1_400), (1_200, 1_400), (1_600, 1_600)] {
        reply.set_time(time_ms);
        assert_eq!(reply, StringsReply::Expires { at_ms: Some(Some(1_500)), now_ms });
    }
}
