//! A ledger as others see it: read-only, without claiming a term, also while a run has it open.
//!
//! Way of data: [`Reader::open`] begins one read of the store, so everything it shows is of one moment; rows come out
//! as bytes, by table and key. A coordinator that was killed leaves a store that must be repaired before it is read:
//! that is done on a copy in memory, and the file stays as it is.

use std::path::{Path, PathBuf};

use redb::backends::InMemoryBackend;
use redb::{
    ConcurrencyMode, Database, DatabaseError, ReadOnlyDatabase, ReadOnlyTable, ReadTransaction, ReadableDatabase,
    ReadableTable, ReadableTableMetadata, StorageBackend, TableDefinition, TableHandle,
};
use serde::Serialize;

use crate::ledger::{CACHE, LedgerError, lock, store};

/// An opened ledger of somebody's run.
pub struct Reader {
    file: PathBuf,
    file_bytes: u64,
    read: ReadTransaction,
    is_repaired_copy: bool,
    _store: Store,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// What the read belongs to.
enum Store {
    OnDisk { _database: ReadOnlyDatabase },
    InMemory { _database: Database },
}

/// How large a table is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableSize {
    /// Its name.
    pub name: String,
    /// Its rows.
    pub rows: u64,
    /// Bytes of its keys and values.
    pub bytes: u64,
    /// Bytes of the pages that hold them.
    pub pages_bytes: u64,
}

impl Reader {
    /// Opens the ledger in a run's folder.
    ///
    /// # Errors
    /// When there is none, it is no ledger, or a process has it open that lets nobody else in; that one is named.
    pub fn open(folder: &Path) -> Result<Reader, LedgerError> {
        let file = folder.join("ledger.redb");
        let failed = |error: redb::Error| store("read", &file, error);
        let file_bytes = std::fs::metadata(&file)
            .map_err(|error| store("read", &file, error))?
            .len();
        let opened = Database::builder()
            .set_cache_size(CACHE)
            .set_concurrency_mode(ConcurrencyMode::SingleWriter)
            .open_read_only(&file);
        let (read, store, is_repaired_copy) = match opened {
            Ok(database) => {
                let read = database.begin_read().map_err(|error| failed(error.into()))?;
                (read, Store::OnDisk { _database: database }, false)
            }
            Err(DatabaseError::RepairAborted) => {
                let database = repaired(&file)?;
                let read = database.begin_read().map_err(|error| failed(error.into()))?;
                (read, Store::InMemory { _database: database }, true)
            }
            Err(DatabaseError::DatabaseAlreadyOpen) => {
                return Err(LedgerError::InUse {
                    folder: folder.to_owned(),
                    holder: lock::holder(folder).unwrap_or_else(|| "that has its ledger open".to_owned()),
                });
            }
            Err(error) => return Err(failed(error.into())),
        };
        Ok(Reader {
            file,
            file_bytes,
            read,
            is_repaired_copy,
            _store: store,
        })
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Size of the file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Whether its coordinator was killed, so that a repaired copy in memory is what is read.
    pub fn is_repaired_copy(&self) -> bool {
        self.is_repaired_copy
    }

    /// Every table, by name.
    ///
    /// # Errors
    /// When the store fails.
    pub fn tables(&self) -> Result<Vec<TableSize>, LedgerError> {
        let failed = |error: redb::Error| store("read", &self.file, error);
        let mut sizes = Vec::new();
        for table in self.read.list_tables().map_err(|error| failed(error.into()))? {
            let name = table.name().to_owned();
            let open = self
                .read
                .open_untyped_table(table)
                .map_err(|error| failed(error.into()))?;
            let stats = open.stats().map_err(|error| failed(error.into()))?;
            sizes.push(TableSize {
                name,
                rows: open.len().map_err(|error| failed(error.into()))?,
                bytes: stats.stored_bytes(),
                pages_bytes: stats.stored_bytes() + stats.metadata_bytes() + stats.fragmented_bytes(),
            });
        }
        sizes.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(sizes)
    }

    /// Shows every row of a table, in the order of keys; a table that is not there has none.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn each(&self, table: &str, mut show: impl FnMut(u64, &[u8])) -> Result<(), LedgerError> {
        let failed = |error: redb::Error| store("read", &self.file, error);
        let Some(open) = self.opened(table)? else { return Ok(()) };
        for row in open.iter().map_err(|error| failed(error.into()))? {
            let (key, value) = row.map_err(|error| failed(error.into()))?;
            show(key.value(), value.value());
        }
        Ok(())
    }

    /// The first and the last key of a table, if it has rows.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn ends_of(&self, table: &str) -> Result<Option<(u64, u64)>, LedgerError> {
        let failed = |error: redb::Error| store("read", &self.file, error);
        let Some(open) = self.opened(table)? else {
            return Ok(None);
        };
        let first = open.first().map_err(|error| failed(error.into()))?;
        let last = open.last().map_err(|error| failed(error.into()))?;
        Ok(first
            .zip(last)
            .map(|((first, _), (last, _))| (first.value(), last.value())))
    }

    /// The bytes of one row.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn row(&self, table: &str, key: u64) -> Result<Option<Vec<u8>>, LedgerError> {
        let Some(open) = self.opened(table)? else {
            return Ok(None);
        };
        let row = open.get(key).map_err(|error| store("read", &self.file, error))?;
        Ok(row.map(|value| value.value().to_vec()))
    }

    fn opened(&self, table: &str) -> Result<Option<ReadOnlyTable<u64, &'static [u8]>>, LedgerError> {
        match self.read.open_table(TableDefinition::<u64, &[u8]>::new(table)) {
            Ok(open) => Ok(Some(open)),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(store("read", &self.file, error)),
        }
    }
}

/// A copy of the store, in memory and repaired.
fn repaired(file: &Path) -> Result<Database, LedgerError> {
    let failed = |error: redb::Error| store("repair a copy of", file, error);
    let bytes = std::fs::read(file).map_err(|error| store("read", file, error))?;
    let memory = InMemoryBackend::new();
    let copied = memory.set_len(bytes.len() as u64);
    copied
        .and_then(|()| memory.write(0, &bytes))
        .map_err(|error| store("copy", file, error))?;
    Database::builder()
        .set_cache_size(CACHE)
        .create_with_backend(memory)
        .map_err(|error| failed(error.into()))
}
