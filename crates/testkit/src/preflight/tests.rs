use super::*;

fn good() -> Machine {
    Machine {
        os: "linux",
        uid: 0,
        go: Some((1, 26)),
        cache: "/cache".into(),
        free_bytes: DISK_FOR_BUILD,
        has_apt: true,
        missing_programs: vec![],
        tools_built: false,
        kernel: KernelFeature::ALL.iter().map(|&(feature, ..)| feature).collect(),
    }
}

fn without(feature: KernelFeature) -> BTreeSet<KernelFeature> {
    good().kernel.into_iter().filter(|&found| found != feature).collect()
}

#[test]
fn accepts_machines_that_can_do_the_job() {
    let cases = [
        ("everything there", good()),
        ("packages missing, apt-get installs them", Machine { missing_programs: vec!["runc"], ..good() }),
        ("no Go, but everything is built", Machine { go: None, tools_built: true, ..good() }),
        (
            "disk for a cluster only, but everything is built",
            Machine { free_bytes: DISK_FOR_CLUSTER, tools_built: true, ..good() },
        ),
    ];
    for (name, machine) in cases {
        assert_eq!(check(&machine), Ok(()), "{name}");
    }
}

#[test]
fn refuses_with_one_sentence_that_names_the_missing_thing() {
    let cases = [
        (Machine { os: "macos", ..good() }, "macos"),
        (Machine { uid: 1000, ..good() }, "uid 1000"),
        (Machine { go: None, ..good() }, "no `go`"),
        (Machine { go: Some((1, 23)), ..good() }, "Go 1.23 is too old"),
        (
            Machine { free_bytes: DISK_FOR_BUILD - 1, ..good() },
            "/cache has 8191 MiB free and 8192 MiB are needed",
        ),
        (Machine { free_bytes: DISK_FOR_CLUSTER - 1, tools_built: true, ..good() }, "2048 MiB are needed"),
        (Machine { has_apt: false, missing_programs: vec!["runc", "ip"], ..good() }, "runc, ip are missing"),
        (Machine { has_apt: false, missing_programs: vec!["runc"], ..good() }, "runc is missing"),
        (Machine { kernel: without(KernelFeature::Overlay), ..good() }, "overlayfs"),
        (Machine { kernel: without(KernelFeature::Veth), ..good() }, "veth"),
        (Machine { kernel: without(KernelFeature::Bridge), ..good() }, "bridge"),
        (Machine { kernel: without(KernelFeature::IptablesNat), ..good() }, "nat table"),
        (Machine { kernel: without(KernelFeature::Cgroups), ..good() }, "cgroup"),
        (Machine { kernel: without(KernelFeature::Namespaces), ..good() }, "namespaces"),
    ];
    for (machine, words) in cases {
        let refusal = check(&machine).expect_err(words).to_string();
        assert!(refusal.contains(words), "{refusal:?} does not say {words:?}");
        assert!(!refusal.contains('\n'), "{refusal:?} is more than one line");
    }
}

#[test]
fn root_is_asked_for_before_anything_else_that_a_person_would_mend() {
    let machine = Machine { uid: 1000, go: None, free_bytes: 0, kernel: BTreeSet::new(), ..good() };
    assert_eq!(check(&machine), Err(PreflightError::NotRoot { uid: 1000 }));
}

#[test]
fn reads_versions_of_go() {
    let cases = [
        ("go version go1.26.8 linux/amd64", Some((1, 26))),
        ("go version go1.27rc1 linux/arm64", Some((1, 27))),
        ("go version devel +abc", None),
        ("", None),
    ];
    for (text, version) in cases {
        assert_eq!(go_version(text), version, "{text}");
    }
}
