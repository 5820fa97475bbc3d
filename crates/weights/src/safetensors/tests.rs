use proptest::prelude::*;
use serde_json::json;

use super::*;

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn one(dtype: &str, shape: &[usize], from: usize, to: usize) -> String {
    json!({ "w": { "dtype": dtype, "shape": shape, "data_offsets": [from, to] } }).to_string()
}

fn refusal(bytes: &[u8]) -> String {
    parse(bytes, Path::new("m.safetensors")).unwrap_err().to_string()
}

#[test]
fn a_well_formed_file_is_read() {
    let header = one("BF16", &[2, 3], 0, 12);
    let entries = parse(&file(&header, &[0; 12]), Path::new("m")).unwrap();
    let start = 8 + header.len();
    assert_eq!(entries["w"], Entry { dtype: Dtype::BF16, shape: vec![2, 3], bytes: start..start + 12 });
}

#[test]
fn each_lie_is_named() {
    let cases = [
        (vec![1, 2], "is truncated: its header needs 8 bytes, the file has 2"),
        (900u64.to_le_bytes().to_vec(), "its header needs 908 bytes, the file has 8"),
        (u64::MAX.to_le_bytes().to_vec(), "claims a header of 18446744073709551615 bytes"),
        (file("[", &[]), "the header of `m.safetensors` is not a JSON object"),
        (
            file("{\"w\":{\"dtype\":\"F32\"}}", &[]),
            "the header entry of tensor `w` in `m.safetensors` is malformed",
        ),
        (
            file(&one("F8_E4M3", &[4], 0, 4), &[0; 4]),
            "tensor `w` in `m.safetensors` has dtype F8_E4M3, expected F32, F16 or BF16",
        ),
        (
            file(&one("F32", &[2, 2], 0, 12), &[0; 12]),
            "claims shape [2, 2] of F32, which its byte range 0..12 does not hold",
        ),
        (file(&one("F32", &[0], 4, 0), &[0; 4]), "its byte range 4..0 does not hold"),
        (file(&one("F16", &[usize::MAX, 2], 0, 4), &[0; 4]), "does not hold"),
        (
            file(&one("F32", &[2], 0, 8), &[0; 7]),
            "ends at byte 70, the file has 69: it is truncated; download it again",
        ),
    ];
    for (bytes, expected) in cases {
        let message = refusal(&bytes);
        assert!(message.contains(expected), "{message:?} should contain {expected:?}");
    }
}

/// A directory whose index places `w` in `shard`.
fn sharded(shard: &str, tensor: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let index = json!({ "weight_map": { tensor: shard } }).to_string();
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let bytes = file(&one("F32", &[1], 0, 4), &1.5f32.to_le_bytes());
    std::fs::write(dir.path().join("a.safetensors"), bytes).unwrap();
    dir
}

#[test]
fn shards_are_found_by_the_index() {
    let dir = sharded("a.safetensors", "w");
    let set = SafetensorsSet::open(dir.path()).unwrap();
    assert_eq!(set.names().collect::<Vec<_>>(), ["w"]);
    assert_eq!(set.tensor("w").unwrap().to_f32(), [1.5]);
    assert!(set.tensor("v").is_none());
}

#[test]
fn an_index_cannot_lie_or_escape() {
    let cases = [
        (sharded("a.safetensors", "v"), "places tensor `v` in `a.safetensors`, which does not contain it"),
        (sharded("../a.safetensors", "w"), "names the shard `../a.safetensors`, expected a plain file name"),
        (sharded("b.safetensors", "w"), "b.safetensors`: No such file"),
    ];
    for (dir, expected) in cases {
        let message = SafetensorsSet::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message:?} should contain {expected:?}");
    }
}

#[test]
fn several_files_need_an_index() {
    let dir = tempfile::tempdir().unwrap();
    let message = SafetensorsSet::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("contains no *.safetensors file"), "{message}");
    for name in ["a.safetensors", "b.safetensors"] {
        std::fs::write(dir.path().join(name), file("{}", &[])).unwrap();
    }
    let message = SafetensorsSet::open(dir.path()).unwrap_err().to_string();
    assert!(
        message.contains("contains 2 *.safetensors files but no model.safetensors.index.json"),
        "{message}"
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes, Path::new("m"));
    }

    #[test]
    fn whatever_parses_lies_inside_the_file(
        shape in proptest::collection::vec(0usize..5, 0..4), from in 0usize..40, to in 0usize..40, len in 0usize..40,
    ) {
        let bytes = file(&one("F32", &shape, from, to), &vec![0; len]);
        if let Ok(entries) = parse(&bytes, Path::new("m")) {
            let entry = &entries["w"];
            prop_assert!(entry.bytes.end <= bytes.len());
            prop_assert_eq!(entry.bytes.len(), shape.iter().product::<usize>() * 4);
        }
    }
}
