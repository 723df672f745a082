//! A kubeconfig file: which server, and as whom (clientcmd.api.k8s.io/v1).

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::credentials::read_file;
use super::{Credentials, Endpoint, Pem, RequestError, Secret, server_url};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    current_context: Option<String>,
    contexts: Option<Vec<NamedContext>>,
    clusters: Option<Vec<NamedCluster>>,
    users: Option<Vec<NamedUser>>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Clone, Deserialize)]
struct Context {
    cluster: String,
    user: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: Option<User>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<String>,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
}

/// Reads where the current context of a kubeconfig leads.
///
/// # Errors
///
/// [`RequestError`] if the file cannot be read, or wants what is not supported.
pub(in crate::host) fn endpoint(path: &Path) -> Result<Endpoint, RequestError> {
    let wrong = |reason: String| RequestError::Unusable { what: path.display().to_string(), reason };
    let text = String::from_utf8(read_file(path)?).map_err(|_| wrong("it is not UTF-8".to_owned()))?;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_documents: 1, max_nodes: 100_000, max_events: 500_000, max_depth: 32 },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 10_000 },
        with_snippet: false,
    };
    let config: Kubeconfig = serde_saphyr::from_str_with_options(&text, options)
        .map_err(|error| wrong(format!("it is no kubeconfig: {}", crate::host::brief(&error.to_string()))))?;
    select(config, path.parent().unwrap_or(Path::new("."))).map_err(wrong)
}

fn select(config: Kubeconfig, beside: &Path) -> Result<Endpoint, String> {
    let current =
        config.current_context.filter(|name| !name.is_empty()).ok_or("it has no current-context")?;
    let contexts = config.contexts.unwrap_or_default();
    let context = contexts.into_iter().find(|context| context.name == current);
    let Context { cluster, user } =
        context.ok_or_else(|| format!("it has no context {}", crate::host::brief(&current)))?.context;
    let clusters = config.clusters.unwrap_or_default();
    let cluster = clusters
        .into_iter()
        .find(|named| named.name == cluster)
        .ok_or_else(|| format!("it has no cluster {}", crate::host::brief(&cluster)))?
        .cluster;
    let ca = pem(beside, cluster.certificate_authority, cluster.certificate_authority_data, "authority")?;
    let ca = ca.ok_or("its cluster has no certificate-authority, without which no server can be trusted")?;
    let url = server_url(&cluster.server)?;
    let named = config.users.unwrap_or_default().into_iter();
    let user = match user.filter(|name| !name.is_empty()) {
        Some(user) => named
            .into_iter()
            .find(|named| named.name == user)
            .ok_or_else(|| format!("it has no user {}", crate::host::brief(&user)))?
            .user
            .unwrap_or_default(),
        None => User::default(),
    };
    Ok(Endpoint { url, name: cluster.tls_server_name, ca, credentials: credentials(user, beside)? })
}

fn credentials(user: User, beside: &Path) -> Result<Credentials, String> {
    let chain = pem(beside, user.client_certificate, user.client_certificate_data, "client certificate")?;
    let key = pem(beside, user.client_key, user.client_key_data, "client key")?;
    if let (Some(chain), Some(key)) = (chain, key) {
        return Ok(Credentials::Certificate { chain, key });
    }
    if let Some(file) = user.token_file {
        return Ok(Credentials::TokenFile(beside.join(file)));
    }
    if let Some(token) = user.token {
        return Ok(Credentials::Token(Secret(token.into_bytes())));
    }
    if user.exec.is_some() || user.auth_provider.is_some() {
        return Err("its user gets credentials from a program, which is not run: use a token or a client \
                    certificate, or a service account in the cluster"
            .to_owned());
    }
    Ok(Credentials::Anonymous)
}

/// What stands in the file itself wins, as with kubectl.
fn pem(beside: &Path, file: Option<String>, data: Option<String>, what: &str) -> Result<Option<Pem>, String> {
    match (data.filter(|data| !data.is_empty()), file.filter(|file| !file.is_empty())) {
        (Some(data), _) => {
            let decoded = STANDARD.decode(data.trim()).map_err(|_| format!("its {what} is no base64"))?;
            Ok(Some(Pem::Given(Secret(decoded))))
        }
        (None, Some(file)) => Ok(Some(Pem::File(beside.join(file)))),
        (None, None) => Ok(None),
    }
}
