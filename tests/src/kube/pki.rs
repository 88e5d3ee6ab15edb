//! Keys and certificates of one cluster. A user is a certificate of the cluster's authority, as with
//! kubeadm: the common name is the user, the organisation its group.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// Names that a client may call the API server by, besides its addresses.
const NAMES: [&str; 5] = [
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// The authority, with a folder that its files are in.
#[derive(Debug)]
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
}

/// A certificate and its key, as files in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// What tokens are signed with and verified by, as files in PEM.
#[derive(Clone, Debug)]
pub(crate) struct TokenKeys {
    pub(crate) private: PathBuf,
    pub(crate) public: PathBuf,
}

impl Authority {
    /// Makes an authority, whose certificate is in [`Self::certificate`].
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let key = KeyPair::generate().context("making the authority's key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "divert tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).context("signing the authority's certificate")?;
        let authority = Self { issuer: Issuer::new(params, key), folder: folder.to_owned() };
        write(&authority.certificate(), &certificate.pem())?;
        Ok(authority)
    }

    /// The file of the authority's certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// A certificate for the API server, called by any of these addresses.
    pub(crate) fn server(&self, addresses: &[IpAddr]) -> Result<Identity> {
        let mut params = CertificateParams::new(NAMES.map(str::to_owned))?;
        params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign("kube-apiserver", None, params, "kube-apiserver")
    }

    /// A certificate for a user, in files named `file`.
    pub(crate) fn client(&self, file: &str, user: &str, group: Option<&str>) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(user, group, params, file)
    }

    /// A key pair that the API server signs tokens of ServiceAccounts with.
    pub(crate) fn token_keys(&self) -> Result<TokenKeys> {
        let path = |suffix: &str| self.folder.join(format!("service-accounts.{suffix}"));
        let keys = TokenKeys { private: path("key"), public: path("pub") };
        let pair = KeyPair::generate().context("making the key of ServiceAccounts")?;
        write(&keys.private, &pair.serialize_pem())?;
        write(&keys.public, &pair.public_key_pem())?;
        Ok(keys)
    }

    fn sign(
        &self,
        name: &str,
        group: Option<&str>,
        mut params: CertificateParams,
        file: &str,
    ) -> Result<Identity> {
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().with_context(|| format!("making a key for {name}"))?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("signing the certificate of {name}"))?;
        let path = |suffix: &str| self.folder.join(format!("{file}.{suffix}"));
        let identity = Identity { certificate: path("crt"), key: path("key") };
        write(&identity.certificate, &certificate.pem())?;
        write(&identity.key, &key.serialize_pem())?;
        Ok(identity)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
