use proptest::prelude::*;

use super::*;

/// What a product label of its own leads to, as one word a table can hold.
fn outcome(catalogue: &Catalogue, product: &str) -> String {
    let labels = BTreeMap::from([(PRODUCT_LABEL.to_owned(), product.to_owned())]);
    match catalogue.identify(&labels) {
        Identification::Recognised { class, .. } => class.name().to_owned(),
        Identification::Cpu { .. } => "cpu".to_owned(),
        Identification::Unrecognised { .. } => "unrecognised".to_owned(),
        Identification::Refused { reason, .. } => format!("{reason:?}"),
        Identification::Unlabelled => "unlabelled".to_owned(),
    }
}

#[test]
fn every_known_label_leads_where_the_table_says() {
    let table = [
        ("NVIDIA-H20", "H20"),
        ("H20", "H20"),
        ("NVIDIA-H20-SXM5-96GB", "H20"),
        ("NVIDIA-H20-3e", "H20-3e"),
        ("NVIDIA-H200", "H200"),
        ("H200", "H200"),
        ("NVIDIA-H200-NVL", "unrecognised"),
        ("NVIDIA-H100-80GB-HBM3", "H100"),
        ("H100-80GB-HBM3", "H100"),
        ("NVIDIA-H100-SXM5-80GB", "H100"),
        ("NVIDIA-H100-PCIe", "H100-PCIe"),
        ("NVIDIA-H100-NVL", "H100-NVL"),
        ("NVIDIA-GH200-480GB", "unrecognised"),
        ("NVIDIA-H800", "H800"),
        ("NVIDIA-A100-SXM4-80GB", "A100"),
        ("A100-SXM4-80GB", "A100"),
        ("NVIDIA-A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA-A100-PCIE-80GB", "A100-PCIe"),
        ("NVIDIA-A100-80GB-PCIe", "A100-PCIe"),
        ("NVIDIA-A800-SXM4-80GB", "A800"),
        ("NVIDIA-L40S", "L40S"),
        ("NVIDIA-L40", "unrecognised"),
        ("NVIDIA-L20", "L20"),
        ("NVIDIA-B200", "B200"),
        ("NVIDIA-GB200", "GB200"),
        ("NVIDIA-GB300", "GB300"),
        ("NVIDIA-B300-SXM6-AC", "B300"),
        ("NVIDIA-A10", "A10"),
        ("NVIDIA-A100", "unrecognised"),
        ("NVIDIA-L4", "L4"),
        ("NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition", "RTX-PRO-6000"),
        ("NVIDIA-H20-SHARED", "Shared"),
        ("NVIDIA-H100-80GB-HBM3-SHARED", "Shared"),
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "MigSlice"),
        ("NVIDIA-H20-MIG-1g.12gb", "MigSlice"),
        ("NVIDIA-H20-MIG-1g.12gb-SHARED", "MigSlice"),
        ("NVIDIA-H200-MIG-INVALID", "MigInvalid"),
        ("CPU", "unrecognised"),
        ("nvidia-h20", "unrecognised"),
        ("NVIDIA-NVIDIA-H20", "unrecognised"),
    ];
    let catalogue = Catalogue::builtin();
    for (product, expected) in table {
        assert_eq!(outcome(&catalogue, product), expected, "{product}");
    }
}

#[test]
fn a_node_without_gpu_labels_is_a_cpu_node_and_one_awaiting_discovery_is_not() {
    let catalogue = Catalogue::builtin();
    let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let cpu = labels(&[("kubernetes.io/arch", "amd64"), ("nvidia.com/gpu.present", "false")]);
    assert_eq!(catalogue.identify(&cpu).class().unwrap().name(), "CPU");
    for label in PRESENCE_LABELS {
        assert_eq!(catalogue.identify(&labels(&[(label, "true")])), Identification::Unlabelled);
    }
    let empty = labels(&[(PRODUCT_LABEL, ""), ("nvidia.com/gpu.present", "true")]);
    assert_eq!(catalogue.identify(&empty), Identification::Unlabelled);
}

#[test]
fn a_declared_class_may_claim_a_slice() {
    let mut slice = Catalogue::builtin().get("H20").unwrap().clone();
    slice.spec.name = "H20-1g".into();
    slice.product_labels = vec!["NVIDIA-H20-MIG-1g.12gb".into()].into();
    let catalogue = Catalogue::builtin().with(slice);
    assert_eq!(outcome(&catalogue, "NVIDIA-H20-MIG-1g.12gb"), "H20-1g");
    assert_eq!(outcome(&catalogue, "NVIDIA-H20"), "H20");
}

proptest! {
    #[test]
    fn a_known_name_with_anything_added_is_never_taken_for_that_card(
        index in 0usize..1000,
        suffix in "[A-Za-z0-9._-]{1,8}",
        in_front in any::<bool>(),
    ) {
        let catalogue = Catalogue::builtin();
        let known: Vec<(&str, &str)> = catalogue
            .iter()
            .flat_map(|class| class.product_labels.iter().map(|label| (class.name(), label.as_ref())))
            .collect();
        let (name, label) = known[index % known.len()];
        let product = if in_front { format!("{suffix}{label}") } else { format!("{label}{suffix}") };
        let found = outcome(&catalogue, &product);
        let is_another_exact_label = known.iter().any(|(_, other)| *other == product);
        prop_assert!(found != name || is_another_exact_label, "{product} was taken for {name}");
    }
}
