//! What the environment says about the hub, read as the hub's Python client reads it.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::percent_decode_str;
use ureq::http::Uri;

use super::wire::Patience;
use crate::error::quoted;
use crate::files::read_small;
use crate::source::Digests;
use crate::{Error, Result};

/// Larger than any file with a token, in bytes.
const LARGEST_TOKEN: u64 = 64 << 10;
const PUBLIC_HUB: &str = "https://huggingface.co";

/// Where the hub is, where its files are kept, and whether it may be asked.
#[derive(Clone)]
pub struct HubConfig {
    /// Address without a final slash and without a login, so that it may be shown.
    pub endpoint: String,
    /// The value of the header that says who asks: a token, or the login of HF_ENDPOINT. Sent to the scheme, host and port of `endpoint`
    /// only, never shown.
    pub authorization: Option<String>,
    /// The folder of `models--org--name` folders.
    pub cache: PathBuf,
    /// What forbids requests, as the user wrote it.
    pub offline: Option<String>,
    /// The variable that names a file of certificates to trust, and the file; else the system's are trusted.
    pub certificates: Option<(&'static str, PathBuf)>,
    /// How long a server is waited for.
    pub patience: Patience,
    /// The digests of cached files that were read before.
    pub digests: Digests,
}

impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, cache, offline, .. } = self;
        write!(f, "HubConfig {{ {endpoint}, {}, offline: {offline:?} }}", cache.display())
    }
}

impl HubConfig {
    /// Honours HF_ENDPOINT; HF_TOKEN, HUGGING_FACE_HUB_TOKEN, HF_TOKEN_PATH and HF_HUB_DISABLE_IMPLICIT_TOKEN; HF_HUB_CACHE,
    /// HUGGINGFACE_HUB_CACHE, HF_HOME and XDG_CACHE_HOME; HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE; SSL_CERT_FILE and REQUESTS_CA_BUNDLE.
    /// `offline` is the caller's own word. Where requests are forbidden, no token is read.
    ///
    /// # Errors
    /// Input for an endpoint that is no web address and for a token that is none, by the variable's name; environment if no variable leads
    /// to a cache folder, or the login's token cannot be read.
    pub fn from_env(offline: bool) -> Result<Self> {
        Self::read(&|name| std::env::var_os(name), offline)
    }

    /// As [`Self::from_env`], of any environment.
    pub(super) fn read(variable: &dyn Fn(&str) -> Option<OsString>, offline: bool) -> Result<Self> {
        let variables = Variables(variable);
        let (endpoint, login) = variables.endpoint()?;
        let offline = offline.then(|| "`offline`".to_owned()).or_else(|| variables.offline());
        let authorization = match (&offline, login) {
            (Some(_), _) => None,
            (None, Some(login)) => Some(login),
            (None, None) => variables.token()?.map(|token| format!("Bearer {token}")),
        };
        Ok(Self {
            endpoint,
            authorization,
            cache: variables.cache()?,
            offline,
            certificates: variables.certificates(),
            patience: Patience::default(),
            digests: Digests::of_user(),
        })
    }
}

/// The variables of an environment, by their names.
struct Variables<'a>(&'a dyn Fn(&str) -> Option<OsString>);

impl Variables<'_> {
    /// One that is set to something.
    fn get(&self, name: &str) -> Option<OsString> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn is_true(&self, name: &str) -> bool {
        let value = self.get(name).unwrap_or_default();
        matches!(&*value.to_string_lossy().to_lowercase(), "1" | "true" | "yes" | "on")
    }

    /// A path, with the home folder in place of a `~` at its beginning.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.get(name)?);
        match (path.strip_prefix("~"), std::env::home_dir()) {
            (Ok(within), Some(home)) => Some(home.join(within)),
            _ => Some(path),
        }
    }

    fn home(&self) -> Result<PathBuf> {
        let cache = || self.path("XDG_CACHE_HOME").or_else(|| Some(std::env::home_dir()?.join(".cache")));
        let home = self.path("HF_HOME").or_else(|| Some(cache()?.join("huggingface")));
        home.ok_or_else(|| Error::environment("there is no home folder to keep models in: set HF_HOME"))
    }

    fn cache(&self) -> Result<PathBuf> {
        match self.path("HF_HUB_CACHE").or_else(|| self.path("HUGGINGFACE_HUB_CACHE")) {
            Some(cache) => Ok(cache),
            None => Ok(self.home()?.join("hub")),
        }
    }

    /// The first of the two variables that is set decides, whatever it says.
    fn offline(&self) -> Option<String> {
        let name = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|name| self.get(name).is_some())?;
        self.is_true(name).then(|| format!("{name}={}", self.get(name).unwrap_or_default().display()))
    }

    fn certificates(&self) -> Option<(&'static str, PathBuf)> {
        ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"].into_iter().find_map(|name| Some((name, self.path(name)?)))
    }

    /// Address and login.
    fn endpoint(&self) -> Result<(String, Option<String>)> {
        let Some(value) = self.get("HF_ENDPOINT") else { return Ok((PUBLIC_HUB.to_owned(), None)) };
        // What it says is not repeated: it may hold a password.
        value.to_str().and_then(endpoint).ok_or_else(|| {
            Error::input(format!("HF_ENDPOINT is no web address: write it as {PUBLIC_HUB}, with http:// or https:// and no query"))
        })
    }

    /// The token of the environment, else the one that the login left in a file.
    fn token(&self) -> Result<Option<String>> {
        if self.is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            return Ok(None);
        }
        let named = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find_map(|name| Some((name, self.get(name)?)));
        if let Some((name, value)) = named
            && let Some(token) = token(value.as_encoded_bytes(), name)?
        {
            return Ok(Some(token));
        }
        let path = self.path("HF_TOKEN_PATH").map_or_else(|| Ok(self.home()?.join("token")), Ok)?;
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_small(&path, LARGEST_TOKEN).map_err(|error| {
            Error::environment(format!(
                "{error}; it should hold the hub's token: set HF_TOKEN, or HF_HUB_DISABLE_IMPLICIT_TOKEN=1 to do without"
            ))
        })?;
        token(&bytes, &login_file(&path))
    }
}

fn login_file(path: &Path) -> String {
    format!("the login's file {}", quoted(&path.display().to_string()))
}

/// The token in what a variable or file holds, if it holds any; what is none is not repeated.
fn token(bytes: &[u8], origin: &str) -> Result<Option<String>> {
    let text = String::from_utf8_lossy(bytes).replace(['\r', '\n'], "");
    let text = text.trim();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~+/=".contains(c);
    match text.chars().position(|c| !allowed(c)) {
        Some(at) => Err(Error::input(format!(
            "{origin} holds no token of the hub: its character {} is neither a letter nor a digit nor one of -._~+/=",
            at + 1
        ))),
        None => Ok(Some(text.to_owned()).filter(|text| !text.is_empty())),
    }
}

/// The address without a final slash, and the login in it as the value of a header.
fn endpoint(text: &str) -> Option<(String, Option<String>)> {
    let uri: Uri = text.parse().ok()?;
    let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
    let authority = uri.authority()?.as_str();
    let (login, host) = authority.rsplit_once('@').map_or((None, authority), |(login, host)| (Some(login), host));
    // An IPv6 address has colons of its own, between brackets.
    let port = host.rsplit_once(']').map_or(host, |(_, after)| after).split_once(':').map(|(_, port)| port);
    let is_sound = uri.host().is_some_and(|host| !host.is_empty()) && port.is_none_or(|port| port.parse::<u16>().is_ok());
    if !is_sound || uri.query().is_some() {
        return None;
    }
    Some((format!("{scheme}://{host}{}", uri.path().trim_end_matches('/')), login.map(basic)))
}

/// `user:password`, as it stands in an address, as the value of a header.
fn basic(login: &str) -> String {
    let login: Vec<u8> = percent_decode_str(login).collect();
    let end: &[u8] = if login.contains(&b':') { b"" } else { b":" };
    format!("Basic {}", BASE64_STANDARD.encode([&login, end].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "hf_marker";

    fn config(variables: &[(&str, &str)]) -> Result<HubConfig> {
        // A home of its own: nothing of who runs the tests is read.
        let nowhere = [("HF_HOME", "/nonexistent")];
        let find = |name: &str| variables.iter().chain(&nowhere).find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
        HubConfig::read(&find, false)
    }

    fn sent(variables: &[(&str, &str)]) -> Option<String> {
        config(variables).unwrap().authorization
    }

    /// The message of a refusal, which names the variable and keeps what it holds to itself.
    fn refused(name: &str, value: &str) -> String {
        let error = config(&[(name, value)]).unwrap_err();
        let message = error.to_string();
        assert!(error.exit_code() == 2 && message.contains(name) && !message.contains("marker"), "{message}");
        message
    }

    fn home() -> PathBuf {
        std::env::home_dir().unwrap()
    }

    #[test]
    fn the_cache_folder_follows_the_first_variable_that_is_set() {
        let all = [("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/g"), ("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")];
        let expected = ["/c", "/g", "/h/hub", "/x/huggingface/hub"];
        for first in 0..all.len() {
            let find = |name: &str| all[first..].iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            assert_eq!(Variables(&find).cache().unwrap(), Path::new(expected[first]));
        }
        assert_eq!(Variables(&|_| None).cache().unwrap(), home().join(".cache/huggingface/hub"));
        assert_eq!(Variables(&|_| Some(OsString::new())).cache().unwrap(), home().join(".cache/huggingface/hub"), "empty is not set");
    }

    #[test]
    fn a_tilde_is_the_home_folder() {
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
            assert_eq!(config(&[(name, "~/models")]).unwrap().cache, home().join("models"));
        }
        assert_eq!(config(&[("HF_HOME", "~")]).unwrap().cache, home().join("hub"));
        assert_eq!(config(&[("HF_HOME", "~x/y")]).unwrap().cache, Path::new("~x/y/hub"));
        let certificates = |name| config(&[(name, "~/roots.pem")]).unwrap().certificates;
        for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"] {
            assert_eq!(certificates(name), Some((name, home().join("roots.pem"))));
        }
    }

    #[test]
    fn the_login_is_where_the_python_client_leaves_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir(path("home")).unwrap();
        for (file, token) in [("home/token", " hf_home\r\n"), ("other", "hf_other\n"), ("token", "hf_beside_the_cache")] {
            std::fs::write(path(file), token).unwrap();
        }
        let (hf_home, cache, other) = (("HF_HOME", &*path("home")), ("HF_HUB_CACHE", &*path("cache")), ("HF_TOKEN_PATH", &*path("other")));
        let bearer = |token: &str| Some(format!("Bearer {token}"));
        assert_eq!(sent(&[hf_home]), bearer("hf_home"));
        assert_eq!(sent(&[hf_home, cache]), bearer("hf_home"), "the cache's folder says nothing about the login");
        assert_eq!(sent(&[cache]), None);
        assert_eq!(sent(&[hf_home, other]), bearer("hf_other"));
        assert_eq!(sent(&[hf_home, ("HUGGING_FACE_HUB_TOKEN", "hf_old")]), bearer("hf_old"));
        assert_eq!(sent(&[hf_home, ("HUGGING_FACE_HUB_TOKEN", "hf_old"), ("HF_TOKEN", " hf_new ")]), bearer("hf_new"));
        assert_eq!(sent(&[hf_home, ("HF_TOKEN", "\n")]), bearer("hf_home"), "nothing but space is no token");
        for yes in ["1", "ON", "true"] {
            assert_eq!(sent(&[hf_home, ("HF_TOKEN", "hf_new"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", yes)]), None);
        }
        assert_eq!(sent(&[hf_home, ("HF_HUB_OFFLINE", "1"), ("HF_TOKEN", "no token")]), None, "nothing is sent, so nothing is read");
        // What lies there but cannot be read is no silent "not logged in".
        let error = config(&[("HF_TOKEN_PATH", &*path("home"))]).unwrap_err();
        assert!(error.exit_code() == 3 && error.to_string().contains("HF_TOKEN"), "{error}");
    }

    #[test]
    fn what_is_no_token_is_named_by_its_variable_and_not_shown() {
        for bad in [
            format!("\"{SECRET}\""),
            format!("{SECRET} {SECRET}"),
            format!("{SECRET}\u{1b}[31m"),
            format!("Bearer {SECRET}"),
            format!("{SECRET}é"),
        ] {
            for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
                refused(name, &bad);
            }
        }
        assert!(refused("HF_TOKEN", &format!("\"{SECRET}\"")).contains("character 1 "));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{SECRET} \u{0}x")).unwrap();
        let path = file.path().to_str().unwrap();
        let message = config(&[("HF_TOKEN_PATH", path)]).unwrap_err().to_string();
        assert!(message.contains(path) && !message.contains("marker"), "{message}");
    }

    #[test]
    fn an_endpoint_is_a_web_address_and_its_login_is_kept_apart() {
        let endpoint = |value| config(&[("HF_ENDPOINT", value)]).unwrap();
        assert_eq!(config(&[]).unwrap().endpoint, "https://huggingface.co");
        for (value, address) in [
            ("https://hf-mirror.com", "https://hf-mirror.com"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
            ("http://[::1]:80/a/b//", "http://[::1]:80/a/b"),
            ("https://u:hf_marker@mirror.example:8443/hub", "https://mirror.example:8443/hub"),
        ] {
            assert_eq!(endpoint(value).endpoint, address);
        }
        let login = |value| endpoint(value).authorization.unwrap();
        assert_eq!(login("https://martin:secret@a.example"), "Basic bWFydGluOnNlY3JldA==");
        assert_eq!(login("https://martin:sec%72et@a.example"), "Basic bWFydGluOnNlY3JldA==");
        assert_eq!(login("https://martin@a.example"), "Basic bWFydGluOg==");
        let both = [("HF_ENDPOINT", "https://martin:secret@a.example"), ("HF_TOKEN", "hf_x")];
        assert_eq!(sent(&both), Some("Basic bWFydGluOnNlY3JldA==".to_owned()), "a mirror's own login stands before the hub's token");
        assert!(!format!("{:?}", config(&both).unwrap()).contains("bWFydG"));

        for bad in [
            "hub",
            "ftp://h",
            "https://",
            "https:///path",
            "http://u:hf_marker@",
            "http://u:hf_marker@h:port",
            "http://u:hf_marker@h:99999",
        ] {
            refused("HF_ENDPOINT", bad);
        }
        for bad in ["http://u:hf_marker@h?x=1", "http://u:hf_marker@h /", "u:hf_marker@h", " https://h"] {
            refused("HF_ENDPOINT", bad);
        }
    }

    #[test]
    fn either_variable_forbids_requests_and_the_first_that_is_set_decides() {
        let offline = |variables: &[(&str, &str)]| config(variables).unwrap().offline;
        assert_eq!(offline(&[]), None);
        assert_eq!(offline(&[("HF_HUB_OFFLINE", "YES")]), Some("HF_HUB_OFFLINE=YES".to_owned()));
        assert_eq!(offline(&[("TRANSFORMERS_OFFLINE", "1")]), Some("TRANSFORMERS_OFFLINE=1".to_owned()));
        assert_eq!(offline(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]), None);
        assert_eq!(offline(&[("HF_HUB_OFFLINE", ""), ("TRANSFORMERS_OFFLINE", "1")]), Some("TRANSFORMERS_OFFLINE=1".to_owned()));
    }
}
