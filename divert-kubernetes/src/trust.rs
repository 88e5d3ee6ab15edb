//! Whether a server is the API server: its certificate, judged as kubectl does where that is as safe.
//!
//! The library takes a certificate that an authority of the cluster has signed for a server. kubectl also takes one that is
//! itself among the cluster's authorities, as `openssl req -x509` makes them (which may sign others, by its default) or as
//! somebody put it there who had no authority to name. Whoever has the key of such a certificate could sign one for the
//! API server's name, so nothing is given away: it is the same key either way.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::Config;
use kube::client::ConfigExt as _;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use tower::BoxError;
use webpki::EndEntityCert;

/// The authorities of a pod's cluster may change while it runs.
const READ_AGAIN: Duration = Duration::from_secs(60);

/// How to speak TLS to a cluster.
pub(super) fn client_config(config: &Config) -> Result<ClientConfig, kube::Error> {
    let mut tls = config.rustls_client_config()?;
    if let Some(authorities) = config.root_cert.as_ref().filter(|_| !config.accept_invalid_certs) {
        let authorities = authorities.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let first = Authorities::new(authorities).map_err(kube::Error::Service)?;
        let file = config.root_cert_file.clone();
        let trust = Trust { file, current: Mutex::new((Arc::new(first), Instant::now())) };
        tls.dangerous().set_certificate_verifier(Arc::new(trust));
    }
    Ok(tls)
}

/// Whom to trust, as it is now.
#[derive(Debug)]
struct Trust {
    file: Option<PathBuf>,
    current: Mutex<(Arc<Authorities>, Instant)>,
}

/// The authorities of a cluster.
#[derive(Debug)]
struct Authorities {
    verifier: Arc<WebPkiServerVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

impl Authorities {
    fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, BoxError> {
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone())?;
        }
        let verifier = WebPkiServerVerifier::builder(Arc::new(roots)).build()?;
        Ok(Self { verifier, certificates })
    }

    fn read(file: &Path) -> Result<Self, BoxError> {
        Self::new(CertificateDer::pem_file_iter(file)?.collect::<Result<_, _>>()?)
    }

    fn verify(
        &self,
        server: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let refused = match self.verifier.verify_server_cert(server, intermediates, name, ocsp, now) {
            Err(refused) => refused,
            verified => return verified,
        };
        let itself = || self.certificates.iter().any(|authority| authority == server);
        if !is_about_who_signed(&refused) || !itself() {
            return Err(refused);
        }
        // That it is valid now is looked at before who signed it: else it would have been refused for that.
        let certificate = EndEntityCert::try_from(server)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let named = certificate.verify_is_valid_for_subject_name(name);
        named.map_err(|_| Error::InvalidCertificate(CertificateError::NotValidForName))?;
        Ok(ServerCertVerified::assertion())
    }
}

/// Whether a certificate was refused for nothing else than who signed it, or that it may sign others.
fn is_about_who_signed(refused: &Error) -> bool {
    match refused {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
        Error::InvalidCertificate(CertificateError::Other(OtherError(error))) => {
            matches!(error.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
        }
        _ => false,
    }
}

impl Trust {
    fn current(&self) -> Arc<Authorities> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = self.file.as_ref().filter(|_| current.1.elapsed() > READ_AGAIN) {
            match Authorities::read(file) {
                Ok(read) => current.0 = Arc::new(read),
                Err(error) => tracing::warn!(
                    "reading the cluster's authorities from {}: {error}; those that were there before still count",
                    file.display()
                ),
            }
            current.1 = Instant::now();
        }
        Arc::clone(&current.0)
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.current().verify(server, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current().verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current().verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current().verifier.supported_verify_schemes()
    }
}

/// What a failed connection says of the server's certificate, and what to do; `None` where it failed for something else.
pub(super) fn refusal(error: &BoxError, server: &str, in_cluster: bool) -> Option<String> {
    let Error::InvalidCertificate(why) = tls_error(error)? else { return None };
    let authorities = if in_cluster {
        "what the cluster's controller manager hands to pods (--root-ca-file, in the ConfigMap kube-root-ca.crt)"
    } else {
        "certificate-authority-data of its cluster in the kubeconfig"
    };
    let (problem, remedy) = match why {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => (
            why.to_string(),
            "have it renewed by who operates the cluster, or set the clock of this machine".to_owned(),
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            why.to_string(),
            "in the kubeconfig, call the server by a name or address that is in it (openssl x509 -ext subjectAltName shows \
             them), or say that as tls-server-name"
                .to_owned(),
        ),
        CertificateError::UnknownIssuer => (
            "no authority that is known here has signed it".to_owned(),
            format!("put the certificate of the authority that has, or its own, into {authorities}"),
        ),
        CertificateError::Other(OtherError(error))
            if matches!(error.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity)) =>
        {
            (
                "it is that of an authority (CA:TRUE), and not among those that are known here".to_owned(),
                format!("put it itself into {authorities}"),
            )
        }
        _ => (why.to_string(), format!("have it issued anew, and see that its authority is in {authorities}")),
    };
    Some(format!("the certificate of the API server at {server} is refused: {problem}; {remedy}"))
}

/// The library's error, wherever it is in a chain. An error of I/O does not give what it holds as its source.
fn tls_error(error: &BoxError) -> Option<&Error> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&**error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, Certificate, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};

    use super::*;

    /// A certificate for `api.test` that nobody else has signed.
    fn itself(change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let mut params = CertificateParams::new(vec!["api.test".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap()
    }

    fn verify(authorities: &Authorities, server: &Certificate, name: &'static str) -> Result<(), Error> {
        let name = ServerName::try_from(name).unwrap();
        authorities.verify(server.der(), &[], &name, &[], UnixTime::now()).map(drop)
    }

    #[test]
    fn a_certificate_among_the_authorities_counts_for_its_name_while_it_is_valid() {
        let expired = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let (own, other, expired) = (itself(|_| {}), itself(|_| {}), itself(expired));
        // It may not be shown by servers, which is no matter of who has signed it.
        let clients = itself(|params| {
            params.is_ca = IsCa::NoCa;
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
        let all = [&own, &expired, &clients].map(|it| it.der().clone());
        let authorities = Authorities::new(all.into()).unwrap();
        assert_eq!(verify(&authorities, &own, "api.test"), Ok(()));
        for (server, name) in
            [(&own, "other.test"), (&other, "api.test"), (&expired, "api.test"), (&clients, "api.test")]
        {
            assert!(
                matches!(verify(&authorities, server, name), Err(Error::InvalidCertificate(_))),
                "{name}"
            );
        }
    }

    #[test]
    fn authorities_of_a_file_are_read_again_and_kept_while_it_cannot_be() {
        let folder = std::env::temp_dir().join(format!("divert-trust-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("ca.crt");
        let [first, second] = [itself(|_| {}), itself(|_| {})];
        std::fs::write(&file, first.pem()).unwrap();
        let read = Arc::new(Authorities::read(&file).unwrap());
        let trust = Trust { file: Some(file.clone()), current: Mutex::new((read, Instant::now())) };
        let trusts = |server: &Certificate| verify(&trust.current(), server, "api.test").is_ok();
        let later = || trust.current.lock().unwrap().1 = Instant::now().checked_sub(READ_AGAIN * 2).unwrap();

        std::fs::write(&file, second.pem()).unwrap();
        assert!(trusts(&first) && !trusts(&second), "before its time");
        later();
        assert!(!trusts(&first) && trusts(&second));
        std::fs::write(&file, "half of a").unwrap();
        later();
        assert!(trusts(&second), "a file that holds no certificate is passed over");
        std::fs::remove_dir_all(&folder).unwrap();
        later();
        assert!(trusts(&second), "a file that is gone as well");
    }
}
