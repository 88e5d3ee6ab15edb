//! `divert-agent crd`: the custom resource definition, made from the types in `api`.

use kube::CustomResourceExt;

use crate::api::Divert;

/// The definition of `divert.dev/v1alpha1` Divert as YAML.
///
/// # Errors
/// None that an installation can cause: the types decide.
pub fn yaml() -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(&Divert::crd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_that_are_deployed_are_the_one_that_the_types_make() {
        for file in ["crd.yaml", "chart/divert/files/crd.yaml"] {
            let path = format!("{}/../deploy/{file}", env!("CARGO_MANIFEST_DIR"));
            let deployed = std::fs::read_to_string(path).unwrap_or_default();
            assert!(deployed == yaml().unwrap(), "deploy/{file} is old: run `cargo xtask manifests`");
        }
    }

    #[test]
    fn the_api_server_has_nothing_to_warn_of() {
        // Of the formats of integers it knows the signed ones.
        assert!(!yaml().unwrap().contains("format: uint"));
    }
}
