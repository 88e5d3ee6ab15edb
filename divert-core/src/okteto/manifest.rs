//! The section `deploy.divert` of an okteto.yaml: pure.

use std::cell::RefCell;
use std::collections::HashMap;
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
    /// What is ignored, or not known.
    pub warnings: Vec<Warning>,
}

/// What may not be as its author thinks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Warning {
    /// A field that is read and has no effect.
    Deprecated(&'static str),
    /// A variable that is not set.
    Unset(String),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deprecated(field) => {
                write!(f, "the field 'deploy.divert.{field}' is deprecated and will be ignored")
            }
            Self::Unset(name) => write!(
                f,
                "the variable {name} is set neither here, in .env nor in the manifest; those of the Okteto platform are not \
                 seen from here"
            ),
        }
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
    /// Its own variables.
    #[error("the field 'variables' is a list of name and value, or of NAME=value, or an object: {0}")]
    Variables(String),
    /// A variable in one of them.
    #[error("the field 'variables', {name}: {error}")]
    ExpandVariable {
        /// Which.
        name: String,
        /// What is wrong.
        error: ExpandError,
    },
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
    /// Reads a manifest. Variables from outside come before its own.
    ///
    /// # Errors
    /// When the section is missing, or asks for what is not supported.
    pub fn read(text: &str, outside: &dyn Fn(&str) -> Option<String>) -> Result<Self, ManifestError> {
        let manifest: Value = serde_saphyr::from_str(text)
            .map_err(|error| ManifestError::Syntax(error.without_snippet().to_string()))?;
        let section = manifest.pointer("/deploy/divert").filter(|section| !section.is_null());
        let section = section.cloned().ok_or(ManifestError::NoSection)?;
        let raw: Raw = serde_path_to_error::deserialize(section).map_err(|error| ManifestError::Field {
            field: error.path().to_string(),
            problem: error.inner().to_string(),
        })?;
        let own = variables(manifest.get("variables"), outside)?;
        let unset = RefCell::new(Vec::new());
        let variable = |name: &str| {
            let value = outside(name).or_else(|| own.get(name).cloned());
            if value.is_none() {
                unset.borrow_mut().push(name.to_owned());
            }
            value
        };
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
        let deprecated = deprecated.filter(|(_, value)| value.is_some());
        let deprecated = deprecated.map(|(field, _)| Warning::Deprecated(field));
        let unset = unset.into_inner().into_iter().map(Warning::Unset);
        Ok(Self { driver, namespace, warnings: deprecated.chain(unset).collect() })
    }

    /// The Divert that it comes to, for the namespace that it is applied in.
    pub fn divert(&self, namespace: &str) -> Divert {
        let spec = DivertSpec { shared_namespace: self.namespace.clone(), ..DivertSpec::default() };
        let mut divert = Divert::new(&self.namespace, spec);
        divert.metadata.namespace = Some(namespace.to_owned());
        divert
    }
}

/// The manifest's own variables. Their values may name others from outside, and those above them.
fn variables(
    section: Option<&Value>,
    outside: &dyn Fn(&str) -> Option<String>,
) -> Result<HashMap<String, String>, ManifestError> {
    let wrong = |value: &Value| ManifestError::Variables(format!("not {value}"));
    let scalar = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        _ => Err(wrong(value)),
    };
    let named = |entry: &Value| match entry {
        Value::String(text) => {
            let (name, value) = text.split_once('=').ok_or_else(|| wrong(entry))?;
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => match (entry.get("name").and_then(Value::as_str), entry.get("value")) {
            (Some(name), Some(value)) => Ok((name.to_owned(), scalar(value)?)),
            _ => Err(wrong(entry)),
        },
    };
    let listed: Vec<(String, String)> = match section {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(entries)) => entries.iter().map(named).collect::<Result<_, _>>()?,
        Some(Value::Object(entries)) => {
            let entries = entries.iter().map(|(name, value)| Ok((name.clone(), scalar(value)?)));
            entries.collect::<Result<_, ManifestError>>()?
        }
        Some(other) => return Err(wrong(other)),
    };
    let mut variables = HashMap::new();
    for (name, value) in listed {
        let variable = |name: &str| outside(name).or_else(|| variables.get(name).cloned());
        let value = expand(&value, &variable)
            .map_err(|error| ManifestError::ExpandVariable { name: name.clone(), error })?;
        variables.insert(name, value);
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(section: &str) -> Result<Section, ManifestError> {
        let text = format!("name: app\ndeploy:\n  commands: [make]\n  divert:\n{section}");
        Section::read(&text, &|name| (name == "OKTETO_SHARED_NAMESPACE").then(|| "qa".to_owned()))
    }

    #[test]
    fn the_manifests_own_variables_come_after_those_from_outside() {
        let namespace = |variables: &str, namespace: &str| {
            let text = format!("{variables}deploy:\n  divert:\n    namespace: {namespace}\n");
            Section::read(&text, &|name| (name == "OUTSIDE").then(|| "qa".to_owned())).map(|it| it.namespace)
        };
        for (variables, written, expected) in [
            ("variables:\n- name: SHARED\n  value: own\n", "${SHARED:-staging}", "own"),
            ("variables:\n- name: OUTSIDE\n  value: own\n", "$OUTSIDE", "qa"),
            ("variables: [SHARED=a=b]\n", "$SHARED", "a=b"),
            ("variables: {SHARED: own}\n", "$SHARED", "own"),
            ("variables: {SHARED: 7}\n", "n$SHARED", "n7"),
            ("variables: [A=$OUTSIDE, \"B=x-$A\"]\n", "$B", "x-qa"),
            ("variables:\n", "staging", "staging"),
        ] {
            assert_eq!(namespace(variables, written).as_deref(), Ok(expected), "{variables}");
        }
        for bad in ["[SHARED]", "[{name: A}]", "{A: [b]}", "text", "[\"A=${B\"]"] {
            let error = namespace(&format!("variables: {bad}\n"), "staging").unwrap_err().to_string();
            assert!(error.contains("the field 'variables'"), "{bad}: {error}");
        }
    }

    #[test]
    fn the_section_names_the_shared_namespace() {
        for (section, driver, namespace, unset) in [
            ("    namespace: staging\n", Driver::Nginx, "staging", None),
            ("    driver: nginx\n    namespace: staging\n", Driver::Nginx, "staging", None),
            ("    driver: ebpf\n    namespace: staging\n", Driver::Ebpf, "staging", None),
            ("    namespace: ${OKTETO_SHARED_NAMESPACE:-staging}\n", Driver::Nginx, "qa", None),
            ("    namespace: ${OTHER:-staging}\n", Driver::Nginx, "staging", Some("OTHER")),
            (
                "    driver: ${DRIVER}\n    namespace: a-${OKTETO_SHARED_NAMESPACE}\n",
                Driver::Nginx,
                "a-qa",
                Some("DRIVER"),
            ),
        ] {
            let expected = Section {
                driver,
                namespace: namespace.into(),
                warnings: unset.map(|it| Warning::Unset(it.to_owned())).into_iter().collect(),
            };
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
        let none = |text| Section::read(text, &|_| None).unwrap_err();
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
