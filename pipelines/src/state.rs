//! `ssm state`: the snapshot of a stream into a store and out of it, so that the stream can go on on another machine.

use crate::Failure;
use object_store::path::Path as Key;
use object_store::{Error, GetOptions, ObjectStore, PutOptions};
use ssm_models::Snapshot;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  ssm state put camera.state s3://states/hall/camera.state     # machine A, after its pipeline has ended
  ssm state get s3://states/hall/camera.state camera.state     # machine B, before its pipeline starts
  ssm state get file:///mnt/states/camera.state camera.state

It ends with 0, with 3 if the store has no such state (a stream that never ran), and with 1 for everything else. What the store
has is replaced at once or not at all, and so is the file.

s3:// needs a build with the feature s3. It reads what other tools read: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, and
for a store that is not Amazon's AWS_ENDPOINT_URL, with AWS_ALLOW_HTTP=true if that is not encrypted.";

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    way: Way,
}

#[derive(clap::Subcommand)]
enum Way {
    /// A file into the store.
    Put {
        /// The snapshot (of `state-out`).
        file: PathBuf,
        /// `s3://BUCKET/KEY` or `file:///PATH`.
        url: String,
    },
    /// From the store into a file.
    Get {
        /// `s3://BUCKET/KEY` or `file:///PATH`.
        url: String,
        /// Where the snapshot goes (for `state-in`).
        file: PathBuf,
    },
}

/// The code where the store has no such state.
const NONE: u8 = 3;
/// Bytes of a snapshot at most; the largest states of published networks take some hundred megabytes.
const LIMIT: u64 = 4 << 30;

fn bad(url: &str, reason: impl ToString) -> Failure {
    Failure::File { path: url.into(), reason: reason.to_string() }
}

/// An error with all that is behind it: the outermost only says that a request failed.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut inner = error.source();
    while let Some(error) = inner {
        let more = error.to_string();
        if !text.contains(&more) {
            text += &format!(": {more}");
        }
        inner = error.source();
    }
    text
}

/// A whole snapshot. Whose it is the element judges: it knows the model.
fn check(bytes: &[u8]) -> Result<(), String> {
    Snapshot::check(bytes).map_err(|e| e.to_string())
}

#[cfg(feature = "s3")]
fn s3(url: &str) -> Result<Box<dyn ObjectStore>, Failure> {
    use object_store::RetryConfig;
    use object_store::aws::AmazonS3Builder;
    // Refused only where it is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // The stream stands still in the meantime, so a store that is away is told soon.
    let retry =
        RetryConfig { max_retries: 3, retry_timeout: std::time::Duration::from_secs(20), ..RetryConfig::default() };
    let store = AmazonS3Builder::from_env().with_url(url).with_retry(retry).build();
    Ok(Box::new(store.map_err(|e| bad(url, told(&e)))?))
}

#[cfg(not(feature = "s3"))]
fn s3(url: &str) -> Result<Box<dyn ObjectStore>, Failure> {
    Err(bad(url, "this build has no feature s3"))
}

/// The store that a URL names, and what in it.
fn store(url: &str) -> Result<(Box<dyn ObjectStore>, Key), Failure> {
    let local = || object_store::local::LocalFileSystem::new().with_fsync(true);
    let (store, key): (Box<dyn ObjectStore>, &str) = match url.split_once("://") {
        Some(("file", path)) if path.starts_with('/') => (Box::new(local()), path),
        Some(("s3", rest)) => match rest.split_once('/') {
            Some((bucket, key)) if !bucket.is_empty() => (s3(url)?, key),
            _ => return Err(bad(url, "expected s3://BUCKET/KEY")),
        },
        _ => return Err(bad(url, "expected s3://BUCKET/KEY or file:///PATH")),
    };
    let key = Key::from_url_path(key).map_err(|e| bad(url, told(&e)))?;
    if key.as_ref().is_empty() || url.ends_with('/') {
        return Err(bad(url, "expected the name of a state at the end, got a folder"));
    }
    Ok((store, key))
}

/// Whether the folder of a state is there, as far as it can be seen from here.
fn folder_is_there(url: &str) -> bool {
    let path = url.strip_prefix("file://").and_then(|path| Key::from_url_path(path).ok());
    path.is_none_or(|key| Path::new("/").join(key.as_ref()).parent().is_some_and(Path::is_dir))
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::Usage(e.to_string()))?;
    let at = |path: &Path, reason: String| Failure::File { path: path.to_owned(), reason };
    match &args.way {
        Way::Put { file, url } => {
            let (store, key) = store(url)?;
            let bytes = std::fs::read(file).map_err(|e| at(file, e.to_string()))?;
            check(&bytes).map_err(|e| at(file, e))?;
            // A store that is not mounted would lie on this machine.
            if !folder_is_there(url) {
                return Err(bad(url, "expected its folder to be there, got none"));
            }
            let put = store.put_opts(&key, bytes.into(), PutOptions::default());
            runtime.block_on(put).map_err(|e| bad(url, told(&e)))?;
        }
        Way::Get { url, file } => {
            let (store, key) = store(url)?;
            let get = async {
                let found = store.get_opts(&key, GetOptions::default()).await?;
                let size = found.meta.size;
                if size > LIMIT { Ok(Err(size)) } else { found.bytes().await.map(Ok) }
            };
            let bytes = match runtime.block_on(get) {
                Ok(Ok(bytes)) => bytes,
                Ok(Err(size)) => return Err(bad(url, format!("expected {LIMIT} bytes at most, got {size}"))),
                // A bucket or a folder that is not there is a mistake, and no first start.
                Err(e @ Error::NotFound { .. }) if !told(&e).contains("NoSuchBucket") && folder_is_there(url) => {
                    warn!("ssm: {url}: no such state");
                    return Ok(NONE.into());
                }
                Err(e) => return Err(bad(url, told(&e))),
            };
            check(&bytes).map_err(|e| bad(url, e))?;
            crate::output::replace(file, |out| out.write_all(&bytes)).map_err(|e| at(file, e.to_string()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
