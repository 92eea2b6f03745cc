//! Opcodes, as Python's pickletools documents them.

use crate::checkpoint::pickle::{Pickle, Value};

/// A pickle's value in words.
fn words(pickle: &[u8]) -> String {
    fn show(p: &Pickle<'_>, id: u32) -> String {
        let list = |ids: &[u32]| ids.iter().map(|id| show(p, *id)).collect::<Vec<_>>().join(" ");
        let dict = |items: &[(u32, u32)]| {
            items.iter().map(|(k, v)| format!("{}:{}", show(p, *k), show(p, *v))).collect::<Vec<_>>().join(" ")
        };
        match p.get(id) {
            Value::Tuple(ids) => format!("({})", list(ids)),
            Value::List(ids) => format!("[{}]", list(ids)),
            Value::Set(ids) => format!("<{}>", list(ids)),
            Value::Dict(items) => format!("{{{}}}", dict(items)),
            Value::Bytes(bytes) => format!("b{}", bytes.escape_ascii()),
            Value::Persistent(key) => format!("@{}", show(p, *key)),
            Value::Object(o) => {
                let state = o.state.map_or_else(String::new, |s| format!("|{}", show(p, s)));
                format!("{}{}{{{}}}[{}]{state}", show(p, o.class), show(p, o.args), dict(&o.items), list(&o.elements))
            }
            _ => p.describe(id),
        }
    }
    match Pickle::parse(pickle) {
        Ok(p) => show(&p, p.root()),
        Err(e) => format!("{} at {}", e.why, e.at),
    }
}

#[test]
fn values() {
    for (pickle, want) in [
        // Protocol 0.
        (&b"I42\n."[..], "42"),
        (b"I01\n.", "true"),
        (b"I00\n.", "false"),
        (b"L-7L\n.", "-7"),
        (b"L119547037146038801333356L\n.", "b119547037146038801333356"),
        (b"F-1.5e3\n.", "-1500"),
        (b"S'a\\x41\\n\\'b'\n.", "baA\\n\\'b"),
        (b"S\"two words\"\n.", "btwo words"),
        (b"Va\\u00e9\\U0001F600\xe9\n.", "\"a\u{e9}\u{1F600}\u{e9}\""),
        (b"(lp0\nI1\naI2\na.", "[1 2]"),
        (b"(dp0\nVk\nI1\ns.", "{\"k\":1}"),
        (b"(I1\nI2\nt.", "(1 2)"),
        (b"(I1\nI2\nl.", "[1 2]"),
        (b"(I1\nI2\nd.", "{1:2}"),
        (b"P17\n.", "@\"17\""),
        (b"(I5\nios\nsystem\n.", "os.system(5){}[]"),
        (b"cos\nsystem\n(Vrm\ntR.", "os.system(\"rm\"){}[]"),
        (b"Va\np7\n0g7\n.", "\"a\""),
        // Protocols 1 and 2.
        (b"\x80\x02N.", "None"),
        (b"K\xff.", "255"),
        (b"M\x01\x02.", "513"),
        (b"J\xfe\xff\xff\xff.", "-2"),
        (b"G\x3f\xf8\0\0\0\0\0\0.", "1.5"),
        (b"\x8a\x00.", "0"),
        (b"\x8a\x01\xff.", "-1"),
        (b"\x8a\x02\xff\x00.", "255"),
        (b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", "a long integer"),
        (b"\x8b\x02\0\0\0\x00\x01.", "256"),
        (b"\x88\x89\x86.", "(true false)"),
        (b"K\x01\x85.", "(1)"),
        (b"K\x01K\x02K\x03\x87.", "(1 2 3)"),
        (b")]}\x87.", "(() [] {})"),
        (b"](K\x01K\x02e.", "[1 2]"),
        (b"}(K\x01K\x02u.", "{1:2}"),
        (b"}q\x03K\x01K\x02s0h\x03.", "{1:2}"),
        (b"]r\0\x01\0\0K\x05aj\0\x01\0\x000j\0\x01\0\0.", "[5]"),
        (b"U\x02hi.", "bhi"),
        (b"T\x02\0\0\0hi.", "bhi"),
        (b"X\x02\0\0\0hi.", "\"hi\""),
        (b"X\x03\0\0\0\xed\xa0\x80.", "b\\xed\\xa0\\x80"),
        (b"K\x012\x86.", "(1 1)"),
        (b"K\x01(K\x02K\x031.", "1"),
        (b"(K\x01K\x02(0t.", "(1 2)"),
        (b"K\x07Q.", "@7"),
        (b"(cargparse\nNamespace\nK\x01o.", "argparse.Namespace(1){}[]"),
        (b"cyacs\nCfg\n)\x81}(K\x01K\x02ubK\x03K\x04s.", "yacs.Cfg(){3:4}[]|{1:2}"),
        (b"ccollections\ndeque\n)RK\x01a.", "collections.deque(){}[1]"),
        // Protocols 3 to 5.
        (b"\x80\x03C\x01aB\x01\0\0\0b\x86.", "(ba bb)"),
        (b"\x80\x04\x95\x05\0\0\0\0\0\0\0\x8c\x01a\x94\x940h\x01.", "\"a\""),
        (b"\x8d\x01\0\0\0\0\0\0\0a.", "\"a\""),
        (b"\x8e\x01\0\0\0\0\0\0\0a.", "ba"),
        (b"\x96\x01\0\0\0\0\0\0\0a.", "ba"),
        (b"\x8c\x01m\x8c\x01n\x93.", "m.n"),
        (b"\x8c\x01m\x8c\x01n\x93)}\x92.", "m.n(){}[]"),
        (b"\x8f(K\x01K\x02\x90.", "<1 2>"),
        (b"(K\x01\x91.", "<1>"),
    ] {
        assert_eq!(words(pickle), want, "{}", pickle.escape_ascii());
    }
}

#[test]
fn what_cannot_be_followed() {
    for (pickle, want) in [
        (&b""[..], "1 bytes are needed, 0 are left at 0"),
        (b"\x80\x06.", "protocol 6, only 0 to 5 are known at 0"),
        (b".", "an empty stack at 0"),
        (b"(.", "an empty stack at 1"),
        (b"K\x01(\x85.", "an empty stack at 3"),
        (b"K\x01(R.", "an empty stack at 3"),
        (b"t.", "a mark is missing at 0"),
        (b"\xff.", "unknown opcode 0xff at 0"),
        (b"\x82\x01.", "an extension code, whose meaning is not in the file at 0"),
        (b"\x97.", "an out-of-band buffer, which is not in the file at 0"),
        (b"Iten\n.", "no number: ten at 0"),
        (b"I1", "a line without end at 0"),
        (b"Sbare\n.", "a string without quotes at 0"),
        (b"h\x09.", "memo 9 is empty at 0"),
        (b"}(K\x01u.", "a key without value at 4"),
        (b"K\x01K\x01K\x01s.", "items for something that is no dict at 6"),
        (b"K\x01K\x01a.", "members for something that is no list or set at 4"),
        (b"K\x01K\x01\x93.", "a global whose names are no texts at 4"),
        (b"(o.", "an object without a class at 1"),
    ] {
        assert_eq!(words(pickle), want, "{}", pickle.escape_ascii());
    }
}

#[test]
fn cycles_depth_and_a_busy_memo_cost_no_more_than_their_length() {
    // A list in itself; a hundred thousand nested tuples; a list that holds one long list again and again.
    let pickle = Pickle::parse(b"]q\x00h\x00a.").unwrap();
    assert_eq!(pickle.members(pickle.root()), Some(&[pickle.root()][..]));
    let deep = [b"N".to_vec(), vec![0x85; 100_000], b".".to_vec()].concat();
    assert_eq!(Pickle::parse(&deep).unwrap().values().len(), 100_001);
    let long = [b"](".to_vec(), b"K\x01".repeat(50_000), b"eq\x00](".to_vec(), b"h\x00".repeat(50_000), b"e.".to_vec()];
    let pickle = long.concat();
    let pickle = Pickle::parse(&pickle).unwrap();
    assert_eq!((pickle.values().len(), pickle.members(pickle.root()).map(<[u32]>::len)), (50_002, Some(50_000)));
    let endless = b"N".repeat((1 << 22) + 1);
    assert_eq!(Pickle::parse(&endless).unwrap_err().why, "more than 4194304 values");
}

#[test]
fn what_an_object_is_handed_again_and_again_is_in_it_once() {
    // A dict of 1000 entries, a thousand times an argument.
    let pickle = [
        &b"}q\x00("[..],
        &b"K\x01K\x02".repeat(1000),
        b"u0ccollections\nOrderedDict\n(",
        &b"h\x00".repeat(1000),
        b"tR.",
    ];
    let pickle = pickle.concat();
    let pickle = Pickle::parse(&pickle).unwrap();
    assert_eq!(pickle.items(pickle.root()).map(Iterator::count), Some(1000));
    // Its own entries come behind those that it was made of; what is no pair ends a list of pairs.
    let pickle = b"ccollections\nOrderedDict\n(](K\x01K\x02\x86K\x03K\x04\x86NetR(K\x05K\x06u.";
    let pickle = Pickle::parse(pickle).unwrap();
    let items = pickle.items(pickle.root()).unwrap();
    let items: Vec<_> = items.map(|(k, v)| (pickle.int(k).unwrap(), pickle.int(v).unwrap())).collect();
    assert_eq!(items, [(1, 2), (3, 4), (5, 6)]);
}
