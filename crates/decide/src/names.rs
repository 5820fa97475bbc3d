//! Names that Kubernetes accepts, whatever the GQLADeployment and its pools are called.

use sha2::{Digest as _, Sha256};

/// Longest Service name, label value and host name.
const LONGEST: usize = 63;

/// First `digits` hex digits of the SHA-256 of `parts`, each followed by a zero byte so that ("ab","c") and
/// ("a","bc") differ.
pub fn hash(parts: &[&str], digits: usize) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    hex[..digits.min(hex.len())].to_owned()
}

/// `parts` joined by `-` as a DNS label that starts with a letter, as Services need. What has to be changed or cut for
/// that ends in a hash of the original, so that two names never become one.
pub fn object_name(parts: &[&str]) -> String {
    let joined = parts.join("-");
    let mut name: String = joined.chars().map(|c| if c == '.' { '-' } else { c }).collect();
    if !name.starts_with(|first: char| first.is_ascii_lowercase()) {
        name.insert_str(0, "gqla-");
    }
    if name == joined && name.len() <= LONGEST {
        return name;
    }
    let digest = hash(&[&joined], 8);
    name.truncate(LONGEST - digest.len() - 1);
    format!("{}-{digest}", name.trim_end_matches('-'))
}

/// Name of the objects of `pool` of the GQLADeployment `deployment`. It always ends in a hash of both: joined names
/// alone are ambiguous, since (`a`, `b-c`) and (`a-b`, `c`) read the same.
pub fn pool_object_name(deployment: &str, pool: &str) -> String {
    let digest = hash(&[deployment, pool], 8);
    let mut name = object_name(&[deployment, pool]);
    name.truncate(LONGEST - digest.len() - 1);
    format!("{}-{digest}", name.trim_end_matches('-'))
}

/// `name` as a label value: itself, or cut and hashed when longer than a label may be.
pub fn label_value(name: &str) -> String {
    if name.len() <= LONGEST {
        return name.to_owned();
    }
    let digest = hash(&[name], 8);
    format!("{}-{digest}", name[..LONGEST - digest.len() - 1].trim_end_matches(['-', '.']))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_names_are_kept() {
        assert_eq!(object_name(&["smollm2"]), "smollm2");
        assert!(pool_object_name("smollm2", "h100").starts_with("smollm2-h100-"));
        assert_eq!(label_value("smollm2"), "smollm2");
    }

    #[test]
    fn pools_of_different_deployments_never_share_a_name() {
        assert_ne!(pool_object_name("llama", "h100"), object_name(&["llama-h100"]));
        assert_ne!(pool_object_name("a", "b-c"), pool_object_name("a-b", "c"));
    }

    #[test]
    fn dots_and_digits_become_legal_and_stay_apart() {
        let dotted = object_name(&["llama-3.1"]);
        assert_ne!(dotted, object_name(&["llama-3-1"]));
        assert!(object_name(&["3b"]).starts_with("gqla-3b-"));
    }

    proptest! {
        #[test]
        fn every_name_is_a_dns_label(cr in "[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?", pool in "[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?") {
            for name in [object_name(&[&cr, &pool]), pool_object_name(&cr, &pool)] {
                prop_assert!(name.len() <= 63);
                prop_assert!(name.starts_with(|c: char| c.is_ascii_lowercase()));
                prop_assert!(name.ends_with(|c: char| c.is_ascii_alphanumeric()));
                prop_assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'));
            }
            let value = label_value(&cr);
            prop_assert!(value.len() <= 63 && value.ends_with(|c: char| c.is_ascii_alphanumeric()));
        }

        #[test]
        fn cut_names_stay_apart(a in "[a-z]{60,90}", b in "[a-z]{60,90}") {
            prop_assume!(a != b);
            prop_assert_ne!(object_name(&[&a, "p"]), object_name(&[&b, "p"]));
        }
    }
}
