//! Kubeconfig files, and credentials that are not shown.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

const CONFIG: &str = "
apiVersion: v1
kind: Config
current-context: here
contexts:
- {name: there, context: {cluster: c, user: nobody}}
- {name: here, context: {cluster: c, user: u, namespace: n}}
clusters:
- name: c
  cluster: {server: 'https://10.0.0.1:6443/prefix', certificate-authority: pki/ca.crt, tls-server-name: kubernetes}
users:
- name: u
  user: {token: secret-token}
";

fn read(text: &str) -> Result<Endpoint, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    fs::write(&path, text).unwrap();
    let short = |error: RequestError| error.to_string().replace(&dir.path().display().to_string(), "DIR");
    let mut endpoint = kubeconfig(&path).map_err(short)?;
    if let Pem::File(path) = &mut endpoint.ca {
        *path = path.strip_prefix(dir.path()).unwrap_or(path).to_owned();
    }
    Ok(endpoint)
}

#[test]
fn the_current_context_counts() {
    let endpoint = read(CONFIG).unwrap();
    assert_eq!(endpoint.url, "https://10.0.0.1:6443/prefix");
    assert_eq!(endpoint.name.as_deref(), Some("kubernetes"));
    assert!(matches!(&endpoint.ca, Pem::File(path) if path == Path::new("pki/ca.crt")), "{:?}", endpoint.ca);
    assert_eq!(endpoint.credentials.token().unwrap().unwrap().as_slice(), b"secret-token");
    assert_eq!(endpoint.request("/api/v1/pods").unwrap().uri(), "/prefix/api/v1/pods");
}

#[test]
fn what_stands_in_the_file_wins_over_other_files() {
    let encoded = STANDARD.encode("pem");
    let text = CONFIG
        .replace(
            "certificate-authority:",
            &format!("certificate-authority-data: {encoded}, certificate-authority:"),
        )
        .replace(
            "token: secret-token",
            &format!("client-certificate-data: {encoded}, client-key: k, token: t"),
        );
    let endpoint = read(&text).unwrap();
    assert!(matches!(&endpoint.ca, Pem::Given(Secret(bytes)) if bytes == b"pem"), "{:?}", endpoint.ca);
    let Credentials::Certificate { chain, key } = &endpoint.credentials else { panic!("{endpoint:?}") };
    assert!(matches!((chain, key), (Pem::Given(_), Pem::File(path)) if path.ends_with("k")));
}

#[test]
fn what_cannot_be_used_is_named() {
    for (from, to, says) in [
        ("current-context: here", "", "it has no current-context"),
        ("current-context: here", "current-context: nowhere", "it has no context nowhere"),
        ("cluster: c, user: u", "cluster: d, user: u", "it has no cluster d"),
        ("cluster: c, user: u", "cluster: c, user: v", "it has no user v"),
        (
            "certificate-authority: pki/ca.crt",
            "insecure-skip-tls-verify: true",
            "has no certificate-authority",
        ),
        (
            "certificate-authority: pki/ca.crt",
            "certificate-authority-data: '%'",
            "its authority is no base64",
        ),
        ("https://", "http://", "is no URL of https"),
        ("token: secret-token", "exec: {command: aws}", "from a program, which is not run"),
        ("token: secret-token", "auth-provider: {name: gcp}", "from a program, which is not run"),
        ("contexts:", "contexts: [", "it is no kubeconfig: "),
    ] {
        let error = read(&CONFIG.replace(from, to)).unwrap_err();
        assert!(error.starts_with("DIR/config: ") && error.contains(says), "{to}: {error}");
        assert!(!error.contains("secret-token"), "{error}");
    }
}

#[test]
fn secrets_are_not_shown() {
    let shown = format!("{:?}", read(CONFIG).unwrap());
    assert!(shown.contains("Token(Secret(…))") && !shown.contains("secret-token"), "{shown}");
    let request = read(CONFIG).unwrap().request("/").unwrap();
    assert!(!format!("{request:?}").contains("secret-token"));
    let broken = CONFIG.replace("secret-token", "\"secret\\ntoken\"");
    let error = read(&broken).unwrap().request("/").unwrap_err().to_string();
    assert!(error.contains("no token has") && !error.contains("secret"), "{error}");
}

#[test]
fn a_refusal_without_a_status_has_its_code() {
    assert_eq!(Refusal::read(502, b"<html>bad gateway").to_string(), "502");
    let status = br#"{"kind":"Status","code":200,"message":"x\u001b[2J","details":{"retryAfterSeconds":2}}"#;
    let refusal = Refusal::read(503, status);
    assert_eq!((refusal.code, refusal.retry_after), (503, Some(Duration::from_secs(2))));
    assert_eq!(refusal.to_string(), "503 (x\\u{1b}[2J)");
}

#[test]
fn only_urls_of_https_are_taken() {
    assert!(server_url("https://h:1/prefix").is_ok());
    for text in [
        "http://h:1",
        "h:1",
        "h",
        "",
        "https://",
        "ftp://h",
        "https://h:99999999",
        "https://h:x",
        "https://u:p@h",
    ] {
        assert!(server_url(text).is_err(), "{text}");
    }
}
