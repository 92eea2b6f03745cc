//! Files that commands write: whole, or as they were before.

use crate::Failure;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The path with an ending behind its own.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// As [`gstssm::replace`]; what is no file, such as a device or a pipe, is written to as it is.
///
/// # Errors
/// The file system refuses; the old file is then as it was.
pub fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(old) if !old.is_file() && !old.is_dir() => write(&mut fs::OpenOptions::new().write(true).open(path)?),
        _ => gstssm::replace(path, write),
    }
}

/// As [`replace`], bytes that are there already.
///
/// # Errors
/// As [`replace`], naming the file.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    replace(path, |file| file.write_all(bytes))
        .map_err(|e| Failure::File { path: path.to_owned(), reason: e.to_string() })
}

/// Writes a picture (PNG) of rows of RGB pixels.
///
/// # Errors
/// As [`write`], or the picture is of a size that PNG does not have.
pub fn png(path: &Path, pixels: &[u8], width: usize, height: usize) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let done = encoder.write_header().and_then(|mut w| w.write_image_data(pixels));
    done.map_err(|e| Failure::File { path: path.to_owned(), reason: e.to_string() })?;
    write(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_or_as_it_was() {
        let folder = std::env::temp_dir().join(format!("ssm-output-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (file, link) = (folder.join("file"), folder.join("link"));
        write(&file, b"one").unwrap();
        // The rights and the links of what lies there stay.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
            std::os::unix::fs::symlink(&file, &link).unwrap();
            write(&link, b"two").unwrap();
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        }
        let cut = replace(&file, |out| {
            out.write_all(b"thr")?;
            Err(io::Error::other("no room"))
        });
        assert!(cut.is_err());
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        let error = write(&folder.join("none").join("file"), b"").unwrap_err().to_string();
        assert!(error.contains("none/file") && !error.contains(".part"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
