//! What must survive the agent but cannot be in etcd: one small JSON file for each attachment, in a directory beside the
//! socket. Like the pods' namespaces it ends with a reboot of the node.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tenon_cni::Error;
use tracing::error;

use crate::attachment::AttachmentId;

/// A directory of notes.
#[derive(Debug)]
pub(super) struct Notes {
    dir: PathBuf,
    synced: bool,
}

#[derive(Serialize, Deserialize)]
struct Note<T> {
    network: String,
    container_id: String,
    ifname: String,
    content: T,
}

impl Notes {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, synced: true }
    }

    /// Notes that are of no use after the machine has failed, and are not waited for until they are on the disk.
    pub(super) fn unsynced(dir: PathBuf) -> Self {
        Self { dir, synced: false }
    }

    /// Writes a note, in the place of an older one of the same attachment.
    pub(super) fn put<T: Serialize>(&self, id: &AttachmentId, content: T) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let AttachmentId { network, container_id, ifname } = id.clone();
        let text = serde_json::to_vec(&Note { network, container_id, ifname, content })?;
        let path = self.path(id);
        // Whoever reads sees the old note or the new one: a file that is only begun has another ending.
        let begun = path.with_extension("new");
        let mut file = File::create(&begun)?;
        file.write_all(&text)?;
        if self.synced {
            file.sync_all()?;
        }
        fs::rename(&begun, &path)?;
        self.sync()
    }

    /// Removes a note; one that is not there is fine.
    pub(super) fn remove(&self, id: &AttachmentId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn get<T: DeserializeOwned>(&self, id: &AttachmentId) -> Option<T> {
        read(&self.path(id)).map(|(_, content)| content)
    }

    /// All notes that can be read.
    pub(super) fn all<T: DeserializeOwned>(&self) -> Vec<(AttachmentId, T)> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths
            .filter(|path| path.extension().is_some_and(|end| end == "json"))
            .filter_map(|p| read(&p))
            .collect()
    }

    fn path(&self, id: &AttachmentId) -> PathBuf {
        self.dir.join(format!("{}.json", id.link_name()))
    }

    /// A rename or removal is on the disk when its directory is.
    fn sync(&self) -> io::Result<()> {
        if self.synced { File::open(&self.dir)?.sync_all() } else { Ok(()) }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<(AttachmentId, T)> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            error!(%error, path = %path.display(), "a note cannot be read");
            return None;
        }
    };
    match serde_json::from_slice::<Note<T>>(&text) {
        Ok(Note { network, container_id, ifname, content }) => {
            Some((AttachmentId { network, container_id, ifname }, content))
        }
        Err(error) => {
            error!(%error, path = %path.display(), "a note cannot be read");
            None
        }
    }
}

/// What a call is answered when a note cannot be kept.
pub(super) fn note_error(error: io::Error) -> Error {
    Error::io_failure(format!("cannot keep a note beside the agent's socket: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(container_id: &str) -> AttachmentId {
        AttachmentId { network: "n".into(), container_id: container_id.into(), ifname: "eth0".into() }
    }

    #[test]
    fn notes_are_read_back_until_they_are_removed() {
        let dir = std::env::temp_dir().join(format!("tenon-notes-{}", std::process::id()));
        let notes = Notes::new(dir.join("releases"));
        assert_eq!(notes.all::<String>(), []);
        notes.remove(&id("c1")).unwrap();
        notes.put(&id("c1"), "one").unwrap();
        notes.put(&id("c1"), "uno").unwrap();
        notes.put(&id("c2"), "two").unwrap();
        fs::write(dir.join("releases/torn.json"), "{").unwrap();
        fs::write(dir.join("releases/begun.new"), "{").unwrap();
        assert_eq!(notes.get::<String>(&id("c1")), Some("uno".to_owned()));
        let mut all = notes.all::<String>();
        all.sort();
        assert_eq!(all, [(id("c1"), "uno".to_owned()), (id("c2"), "two".to_owned())]);
        notes.remove(&id("c1")).unwrap();
        assert_eq!(notes.get::<String>(&id("c1")), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
