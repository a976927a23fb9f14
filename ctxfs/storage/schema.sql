-- The tree database: the truth for names, attributes, and what the bucket does not have yet. One per (store, context) and host.
-- Read this with STYLE's sentence in mind: where a byte is, who may delete it, and what a crash at any line leaves behind.

-- Facts about the database itself: schema version, context id, next_ino, index objects already read, …
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;

-- One row per file identity. INVARIANT: ino is never reused, so FUSE's generation is always 0.
-- INVARIANT: nlink = number of dentries that name it (directories: 2 + number of subdirectories). A row with nlink 0 is an
-- orphan: open-unlinked; recovery removes it.
CREATE TABLE inode (
    ino         INTEGER PRIMARY KEY,
    mode        INTEGER NOT NULL,           -- with type (S_IFMT)
    uid         INTEGER NOT NULL,
    gid         INTEGER NOT NULL,
    rdev        INTEGER NOT NULL,
    nlink       INTEGER NOT NULL,
    size        INTEGER NOT NULL,           -- bytes; while content = 1 (staged) the staging file's own size is the truth
    atime_ns    INTEGER NOT NULL,
    mtime_ns    INTEGER NOT NULL,
    ctime_ns    INTEGER NOT NULL,
    content     INTEGER NOT NULL,           -- Content: 0 none (not a regular file), 1 staged, 2 sealed, 3 clean
    revision    INTEGER NOT NULL,           -- +1 per change of content, at least once per change from clean to staged
    attrs_known INTEGER NOT NULL,           -- 0: only what a listing says; the object's metadata was not read yet
    target      BLOB,                       -- a symlink's target
    xattrs      BLOB,                       -- msgpack {name: value}; NULL when it has none
    link_group  TEXT,                       -- names that another host hard-linked carry the same group; NULL for most. INVARIANT: names
                                            -- with one group have one content, so a file whose content changes gets another group
    local       INTEGER NOT NULL DEFAULT 0  -- stays on this host: 1 by its type or the policy's white lists, 2 because a conflict was
                                            -- decided against it and nobody settled that yet; see storage/gating.py
);
-- INVARIANT: a local inode has no object and no pending row (but a directory's SUBTREE): the bucket does not know of it.
CREATE INDEX inode_local ON inode (mode, size) WHERE local;
CREATE INDEX inode_sealed ON inode (content) WHERE content = 2;
CREATE INDEX inode_orphan ON inode (nlink) WHERE nlink = 0;

-- Names. A directory's path is the chain of its parents; no path is stored, so renaming a directory is one row.
CREATE TABLE dentry (
    parent INTEGER NOT NULL,
    name   BLOB NOT NULL,
    ino    INTEGER NOT NULL,
    PRIMARY KEY (parent, name)
) WITHOUT ROWID;
CREATE INDEX dentry_ino ON dentry (ino);
CREATE UNIQUE INDEX inode_link_group ON inode (link_group) WHERE link_group IS NOT NULL;

-- What we know the bucket to hold, by key relative to the context. An inode's clean content can be read from any row with its
-- (ino, revision). A row whose key is no path of its inode any more is deleted from the bucket once another row carries the content.
-- doomed = 1 (tombstone): nobody wants the content; the object is to be deleted, only if it still is this etag.
-- doomed = 2 (kept): removed here, and the policy keeps what is removed (deletePolicy.syncLocalFile false): it stays in the bucket, and is
-- not shown here as long as it is this etag.
CREATE TABLE object (
    key      TEXT PRIMARY KEY,
    etag     TEXT NOT NULL,
    size     INTEGER NOT NULL,
    ino      INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    sha256   TEXT NOT NULL,                 -- of the content, '' when not known
    doomed   INTEGER NOT NULL,
    lifecycle   TEXT NOT NULL DEFAULT '',   -- the lifecycle tag that the object carries; '' when none
    uploaded_ns INTEGER NOT NULL DEFAULT 0, -- when this version was uploaded, by the store's clock; 0 when not known
    said_ns     INTEGER NOT NULL DEFAULT 0  -- when its host wrote the index record that the attributes are from; of two the later counts
) WITHOUT ROWID;
CREATE INDEX object_ino ON object (ino);
CREATE INDEX object_doomed ON object (key) WHERE doomed;
CREATE INDEX object_lifecycle ON object (lifecycle, uploaded_ns) WHERE lifecycle <> '';

-- Deleted from the bucket, and other hosts are not told yet: an index tombstone for the key is still to be written.
CREATE TABLE announce (
    key        TEXT PRIMARY KEY,
    deleted_ns INTEGER NOT NULL             -- just before: a record that another host writes for the key afterwards is the later one
) WITHOUT ROWID;

-- The journal: inodes of which the bucket does not know everything yet. Written in the transaction of the change itself.
-- A row is removed only if seq is still what it was when the work was planned.
CREATE TABLE pending (
    ino        INTEGER PRIMARY KEY,
    reason     INTEGER NOT NULL,            -- Reason bits: content, names, attributes, subtree, index
    seq        INTEGER NOT NULL,
    since_ns   INTEGER NOT NULL,            -- of the oldest change that is not in the bucket
    attempt    INTEGER NOT NULL,
    retry_ns   INTEGER NOT NULL,            -- not before; 0 at once
    error      TEXT NOT NULL                -- why the last attempt failed, '' if it did not
);

-- Directories whose times changed because entries came or went. By itself that is no reason for a request: a row goes along with the next
-- index segment that is written for another reason, so a file that was made and removed in between costs none.
CREATE TABLE touched (
    ino INTEGER PRIMARY KEY
);

-- Objects of the context that no file system can show, with the reason; never touched by ctxfs.
CREATE TABLE unmountable (
    key    TEXT PRIMARY KEY,
    reason TEXT NOT NULL
) WITHOUT ROWID;

-- Attributes from the index that wait for their object to be listed, or to have a place here (unmountable). All others go when the listing is
-- complete.
CREATE TABLE hint (
    key    TEXT PRIMARY KEY,
    etag   TEXT NOT NULL,
    size   INTEGER NOT NULL,
    record BLOB NOT NULL                    -- msgpack IndexRecord
) WITHOUT ROWID;

-- Conflicts that nobody settled yet: two versions wanted one key, and one of them has a name of its own beside the other since.
CREATE TABLE conflict (
    ino      INTEGER NOT NULL,              -- what stands under that name of its own
    original TEXT NOT NULL,                 -- the key that both wanted
    since_ns INTEGER NOT NULL,
    holds    INTEGER NOT NULL,              -- whose version it is: 0 this host's, 1 the one that was published
    PRIMARY KEY (ino, original)
) WITHOUT ROWID;

-- What of a staging file is known to be on the disk: when it had this size, `holes` bytes of it in holes, it was fsynced. Written after the
-- fsync, gone with the turn that makes the inode STAGED anew. After a power cut a staged file without a row proves nothing: it may have its
-- size and be full of zeros (sync/power_cut.py).
CREATE TABLE hardened (
    ino   INTEGER PRIMARY KEY,
    size  INTEGER NOT NULL,
    holes INTEGER NOT NULL
);

-- Writes to the bucket that were begun and whose end is not recorded: after a crash or a lost answer nobody knows whether they arrived.
-- Settled by asking for the object (sync/doubt.py) before anything else is decided about the key.
CREATE TABLE attempt (
    key      TEXT PRIMARY KEY,
    ino      INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    sha256   TEXT NOT NULL                  -- of what was to be copied, or what else tells that it arrived; see sync/doubt.py
) WITHOUT ROWID;

-- Archive mode: the log of commits (storage/archive_log_format.py) as this host has read it, up to the commit whose number is in meta
-- (archive_number). May be lost: it is read again. A member's row here is what the bucket has; the row in `object` is what this host's file is
-- based on, as for any object.
CREATE TABLE member (
    key         TEXT PRIMARY KEY,
    etag        TEXT NOT NULL,              -- see storage/members.py
    size        INTEGER NOT NULL,
    archive     INTEGER NOT NULL,           -- archive.id
    at          INTEGER NOT NULL,           -- where its bytes begin in the archive
    packed      INTEGER NOT NULL,           -- how many
    method      INTEGER NOT NULL,           -- as in zip: 0 stored, 8 deflated
    crc         INTEGER NOT NULL,
    shadows     TEXT NOT NULL,              -- etag of the object whose place it took; '' when none, or when that is gone
    is_shadowed INTEGER NOT NULL,           -- not 0: an object has the key since, and counts. 1 + the number of the commit up to which the log was
                                            -- read when a listing began that showed no object there; 1: none did
    record      BLOB                        -- msgpack IndexRecord; NULL where this host wrote it
) WITHOUT ROWID;
CREATE INDEX member_archive ON member (archive);
CREATE INDEX member_shadowed ON member (key) WHERE is_shadowed;
CREATE INDEX member_shadows ON member (key) WHERE shadows <> '';
CREATE TABLE archive (
    id        INTEGER PRIMARY KEY,
    name      TEXT NOT NULL UNIQUE,
    size      INTEGER NOT NULL,
    lifecycle TEXT NOT NULL,                -- the lifecycle tag that it carries; '' when none
    made_ns   INTEGER NOT NULL,
    dead_ns   INTEGER NOT NULL              -- when this host learnt that a commit dropped it; 0: it is in use
);
-- Members that were deleted, by which commit, while an archive may be left that has them: whoever packs that anew, or drops the archive that
-- tells of the deletion, tells it again.
CREATE TABLE deleted_member (
    key    TEXT PRIMARY KEY,
    number INTEGER NOT NULL
) WITHOUT ROWID;
