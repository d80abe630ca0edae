//! [`OutputFile`]: where `export FILE` and `get --output FILE` write.
//!
//! A regular file appears under its name only when it is whole and on disk: it is written beside its
//! place under a name that nobody has, synced, and renamed. What a failure leaves is what was there
//! before. Anything else that has the name (a device, a pipe) is written through, never replaced. Of a
//! symbolic link it is the file it points to that is replaced. A file within the database's own directory
//! is refused: an export that overwrites the log it reads from would be the end of the data.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::exit::{Failure, Result};

enum Form {
    /// Not yet under its name.
    Aside(BufWriter<NamedTempFile>),
    /// A device or a pipe.
    Through(BufWriter<File>),
}

/// See the [module](self). Dropped before [`OutputFile::finish`], it leaves everything as it was.
pub(crate) struct OutputFile {
    /// Where it will be: with symbolic links followed.
    path: PathBuf,
    form: Form,
}

impl OutputFile {
    /// Begins to write a file that will be called `path`; not within `database`, if there is one.
    pub(crate) fn create(path: &Path, database: Option<&Path>) -> Result<OutputFile> {
        let failed = |error: io::Error| Failure::io(path.display(), &error);
        let target = match fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                return Err(failed(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory")));
            }
            Ok(found) if found.is_file() => path.canonicalize().map_err(failed)?,
            Ok(_) => {
                let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
                return Ok(OutputFile { path: path.to_owned(), form: Form::Through(BufWriter::new(file)) });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if fs::symlink_metadata(path).is_ok() {
                    let what = "it is a symbolic link to a file that is not there";
                    return Err(failed(io::Error::new(io::ErrorKind::NotFound, what)));
                }
                let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
                parent(path).canonicalize().map_err(failed)?.join(name)
            }
            Err(error) => return Err(failed(error)),
        };
        if let Some(database) = database.and_then(|database| database.canonicalize().ok())
            && target.starts_with(&database)
        {
            return Err(Failure::refused(format!(
                "{} lies within the database {}: what is written there would destroy it",
                path.display(),
                database.display()
            )));
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        let mut builder = tempfile::Builder::new();
        builder.prefix(&name).suffix(".partial");
        {
            // As any file that a command makes, what the user's umask leaves of it; a file that is
            // replaced keeps what it has.
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(&target).map_or(0o666, |found| found.permissions().mode());
            builder.permissions(fs::Permissions::from_mode(mode));
        }
        let file = builder.tempfile_in(parent(&target)).map_err(failed)?;
        Ok(OutputFile { path: target, form: Form::Aside(BufWriter::new(file)) })
    }

    /// Puts everything on disk and the file under its name; gives back its size, 0 for what is no
    /// regular file.
    pub(crate) fn finish(self) -> Result<u64> {
        let failed = |error: io::Error| Failure::io(self.path.display(), &error);
        match self.form {
            Form::Through(mut through) => {
                through.flush().map_err(failed)?;
                Ok(0)
            }
            Form::Aside(writer) => {
                let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
                file.as_file().sync_all().map_err(failed)?;
                let file = file.persist(&self.path).map_err(|error| failed(error.error))?;
                // The name is on disk when the directory is.
                File::open(parent(&self.path)).and_then(|parent| parent.sync_all()).map_err(failed)?;
                Ok(file.metadata().map_err(failed)?.len())
            }
        }
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.form {
            Form::Aside(file) => file.write(bytes),
            Form::Through(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.form {
            Form::Aside(file) => file.flush(),
            Form::Through(file) => file.flush(),
        }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
