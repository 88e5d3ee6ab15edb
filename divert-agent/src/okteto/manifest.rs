//! The section `deploy.divert` of an okteto.yaml: pure.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use super::expand::{ExpandError, expand};
use crate::api::{Divert, DivertSpec};

/// Who diverts, as the manifest names it. We stand in for the first and answer to a name of our own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Driver {
    /// The default.
    Nginx,
    /// Ours.
    Ebpf,
}

/// The section, understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Section {
    /// Who diverts.
    pub driver: Driver,
    /// The shared namespace.
    pub namespace: String,
    /// What is ignored.
    pub warnings: Vec<Warning>,
}

/// A field that is read and has no effect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning(&'static str);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the field 'deploy.divert.{}' is deprecated and will be ignored", self.0)
    }
}

/// Why a manifest asks for nothing that can be done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ManifestError {
    /// No YAML.
    #[error("it is no YAML: {0}")]
    Syntax(String),
    /// No section.
    #[error("it has no section 'deploy.divert': there is nothing to divert")]
    NoSection,
    /// A field that does not exist, or of another type.
    #[error("the field 'deploy.divert.{field}': {problem}")]
    Field {
        /// Below the section; the section's own errors name no field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No shared namespace.
    #[error("the field 'deploy.divert.namespace' is mandatory")]
    NoNamespace,
    /// Another driver.
    #[error("the divert driver '{0}' isn't supported")]
    Driver(String),
    /// Of another driver.
    #[error(
        "the field 'deploy.divert.{0}' is for the divert driver 'istio', which isn't supported: remove it"
    )]
    Istio(&'static str),
    /// A variable.
    #[error("the field 'deploy.divert.{field}': {error}")]
    Expand {
        /// Below the section.
        field: &'static str,
        /// What is wrong.
        error: ExpandError,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Raw {
    driver: Option<String>,
    namespace: Option<String>,
    virtual_services: Option<Value>,
    hosts: Option<Value>,
    service: Option<Value>,
    deployment: Option<Value>,
    port: Option<Value>,
}

impl Section {
    /// Reads a manifest.
    ///
    /// # Errors
    /// When the section is missing, or asks for what is not supported.
    pub fn read(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, ManifestError> {
        let manifest: Value = serde_saphyr::from_str(text)
            .map_err(|error| ManifestError::Syntax(error.without_snippet().to_string()))?;
        let section = manifest.pointer("/deploy/divert").filter(|section| !section.is_null());
        let section = section.cloned().ok_or(ManifestError::NoSection)?;
        let raw: Raw = serde_path_to_error::deserialize(section).map_err(|error| ManifestError::Field {
            field: error.path().to_string(),
            problem: error.inner().to_string(),
        })?;
        let expanded = |field, text: Option<String>| {
            expand(&text.unwrap_or_default(), &variable)
                .map_err(|error| ManifestError::Expand { field, error })
        };
        let driver = match expanded("driver", raw.driver)?.as_str() {
            "" | "nginx" => Driver::Nginx,
            "ebpf" => Driver::Ebpf,
            other => return Err(ManifestError::Driver(other.to_owned())),
        };
        let istio = [("virtualServices", raw.virtual_services), ("hosts", raw.hosts)];
        if let Some((field, _)) = istio.into_iter().find(|(_, value)| value.is_some()) {
            return Err(ManifestError::Istio(field));
        }
        let namespace = expanded("namespace", raw.namespace)?;
        if namespace.is_empty() {
            return Err(ManifestError::NoNamespace);
        }
        let deprecated =
            [("service", raw.service), ("deployment", raw.deployment), ("port", raw.port)].into_iter();
        let warnings = deprecated.filter(|(_, value)| value.is_some()).map(|(field, _)| Warning(field));
        Ok(Self { driver, namespace, warnings: warnings.collect() })
    }

    /// The Divert that it comes to, for the namespace that it is applied in.
    pub fn divert(&self, namespace: &str) -> Divert {
        let spec = DivertSpec { shared_namespace: self.namespace.clone(), ..DivertSpec::default() };
        let mut divert = Divert::new(&self.namespace, spec);
        divert.metadata.namespace = Some(namespace.to_owned());
        divert
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(section: &str) -> Result<Section, ManifestError> {
        let text = format!("name: app\ndeploy:\n  commands: [make]\n  divert:\n{section}");
        Section::read(&text, |name| (name == "OKTETO_SHARED_NAMESPACE").then(|| "qa".to_owned()))
    }

    #[test]
    fn the_section_names_the_shared_namespace() {
        for (section, driver, namespace) in [
            ("    namespace: staging\n", Driver::Nginx, "staging"),
            ("    driver: nginx\n    namespace: staging\n", Driver::Nginx, "staging"),
            ("    driver: ebpf\n    namespace: staging\n", Driver::Ebpf, "staging"),
            ("    namespace: ${OKTETO_SHARED_NAMESPACE:-staging}\n", Driver::Nginx, "qa"),
            ("    namespace: ${OTHER:-staging}\n", Driver::Nginx, "staging"),
            ("    driver: ${DRIVER}\n    namespace: a-${OKTETO_SHARED_NAMESPACE}\n", Driver::Nginx, "a-qa"),
        ] {
            let expected = Section { driver, namespace: namespace.into(), warnings: Vec::new() };
            assert_eq!(read(section), Ok(expected), "{section}");
        }
        let divert = read("    namespace: staging\n").unwrap().divert("alice");
        let value = serde_json::to_value(divert).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "apiVersion": "divert.dev/v1alpha1", "kind": "Divert",
                "metadata": {"name": "staging", "namespace": "alice"},
                "spec": {"sharedNamespace": "staging"},
            })
        );
    }

    #[test]
    fn errors_are_those_that_users_know() {
        for (section, expected) in [
            ("    driver: nginx\n", "the field 'deploy.divert.namespace' is mandatory"),
            ("    namespace: ${NOTHING}\n", "the field 'deploy.divert.namespace' is mandatory"),
            ("    driver: istio\n    namespace: s\n", "the divert driver 'istio' isn't supported"),
            ("    driver: X\n    namespace: s\n", "the divert driver 'X' isn't supported"),
            ("    namespace: s\n    hosts: []\n", "'deploy.divert.hosts' is for the divert driver 'istio'"),
            ("    namespace: s\n    virtualServices: []\n", "'deploy.divert.virtualServices' is for"),
            ("    namespace: s\n    namespaces: t\n", "unknown field `namespaces`"),
            ("    namespace: [s]\n", "the field 'deploy.divert.namespace': invalid type"),
            ("    namespace: ${A\n", "`${A`: a `${` is not closed"),
        ] {
            let error = read(section).unwrap_err().to_string();
            assert!(error.contains(expected), "{section}: {error}");
        }
        let none = |text| Section::read(text, |_| None).unwrap_err();
        assert_eq!(none("deploy: [make]\n"), ManifestError::NoSection);
        assert_eq!(none("deploy:\n  divert:\n"), ManifestError::NoSection);
        assert!(matches!(none("deploy: {"), ManifestError::Syntax(_)));
    }

    #[test]
    fn deprecated_fields_are_read_and_ignored_with_a_warning() {
        let section =
            read("    namespace: s\n    service: web\n    deployment: web\n    port: 80\n").unwrap();
        let warnings: Vec<_> = section.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(
            warnings,
            ["service", "deployment", "port"]
                .map(|field| format!("the field 'deploy.divert.{field}' is deprecated and will be ignored"))
        );
    }
}
