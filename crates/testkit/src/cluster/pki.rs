//! The cluster's certificate authority and what it issues. Elliptic-curve keys take microseconds where RSA
//! keys take a second.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, string::Ia5String,
};

use super::error::{ClusterError, io};

/// The authority, and the folder that holds what it issues: `NAME.crt` and `NAME.key`.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

/// Who a certificate is for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Subject<'a> {
    /// File name.
    pub(crate) name: &'a str,
    /// Common name, which Kubernetes takes as the user.
    pub(crate) user: &'a str,
    /// Organisation, which Kubernetes takes as the group.
    pub(crate) group: Option<&'a str>,
    /// Addresses it serves on.
    pub(crate) addresses: &'a [IpAddr],
    /// Names it serves as.
    pub(crate) names: &'a [&'a str],
}

impl Authority {
    /// Makes the authority (`ca.crt`, `ca.key`) and the key pair that signs service account tokens (`sa.key`,
    /// `sa.pub`).
    pub(crate) fn create(folder: &Path) -> Result<Self, ClusterError> {
        let named = |source| ClusterError::Certificate { name: "ca".to_owned(), source };
        fs::create_dir_all(folder).map_err(io("create the folder", folder))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "gqla test cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let issuer =
            CertifiedIssuer::self_signed(params, KeyPair::generate().map_err(named)?).map_err(named)?;
        let authority = Self { issuer, folder: folder.to_path_buf() };
        authority.write("ca.crt", &authority.issuer.pem())?;
        authority.write("ca.key", &authority.issuer.key().serialize_pem())?;
        let tokens = KeyPair::generate().map_err(named)?;
        authority.write("sa.key", &tokens.serialize_pem())?;
        authority.write("sa.pub", &tokens.public_key_pem())?;
        Ok(authority)
    }

    /// Issues a certificate for servers and clients alike.
    pub(crate) fn issue(&self, subject: &Subject<'_>) -> Result<(), ClusterError> {
        let named = |source| ClusterError::Certificate { name: subject.name.to_owned(), source };
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject.user);
        if let Some(group) = subject.group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.subject_alt_names =
            subject.addresses.iter().map(|&address| SanType::IpAddress(address)).collect();
        for &name in subject.names {
            params.subject_alt_names.push(SanType::DnsName(Ia5String::try_from(name).map_err(named)?));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(named)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(named)?;
        self.write(&format!("{}.crt", subject.name), &certificate.pem())?;
        self.write(&format!("{}.key", subject.name), &key.serialize_pem())
    }

    /// Writes a kubeconfig to `path` that reaches `server` with the certificate `name`.
    pub(crate) fn write_kubeconfig(&self, path: &Path, name: &str, server: &str) -> Result<(), ClusterError> {
        let file = |suffix: &str| self.folder.join(suffix);
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "gqla", "cluster": {"server": server, "certificate-authority": file("ca.crt")}}],
            "users": [{"name": "gqla", "user": {"client-certificate": file(&format!("{name}.crt")), "client-key": file(&format!("{name}.key"))}}],
            "contexts": [{"name": "gqla", "context": {"cluster": "gqla", "user": "gqla"}}],
            "current-context": "gqla",
        });
        fs::write(path, format!("{kubeconfig:#}\n")).map_err(io("write", path))
    }

    fn write(&self, name: &str, pem: &str) -> Result<(), ClusterError> {
        let path = self.folder.join(name);
        fs::write(&path, pem).map_err(io("write", &path))
    }
}
