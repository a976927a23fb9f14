/* Listings of directories: what Python knows of a directory's entries, written as the kernel wants them (linux/fuse.h), and the requests at the
 * end of a listing that nothing need be asked for.
 *
 * Python hands over the entries as numbers and names (ctxfs_list, fuse_listing.py) and has pyfuse3 add one entry, which is then all of them:
 * one by one they cost 11 us more each. Where these are the last ones, the request that only finds out that nothing follows is answered here, and a
 * directory's release is told to Python afterwards (ctxfs_released). */
#include "fuse_ops.h"

#include <string.h>

/* of each entry, in this order; times in ns. `blocks` < 0: as many as the size needs */
struct listed {
    int64_t ino, mode, nlink, uid, gid, rdev, size, atime, mtime, ctime, is_known, blocks, name_length;
};

/* as the kernel counts offsets: '.' ends at 1, '..' at 2; neither becomes known to it by a listing */
#define DOTS 2
#define RELEASED 256

static struct { const struct listed *entries; const char *names; uint64_t count, offset, fh; } next;
static struct table ends;       /* handle -> offset behind its last entry */

/* how many entries were written, and the handles that were released */
uint64_t ctxfs_written, ctxfs_released_count, ctxfs_released[RELEASED];

/* These follow the offset in a listing. `fh`: of the directory, where nothing follows them; else 0. Valid until they are written, in the same step. */
void ctxfs_list(const void *entries, const char *names, uint64_t count, uint64_t offset, uint64_t fh)
{
    next.entries = entries;
    next.names = names;
    next.count = count;
    next.offset = offset;
    next.fh = fh;
    ctxfs_written = 0;
}

static int64_t seconds(int64_t ns)
{
    return ns / NANO - (ns % NANO < 0);
}

/* An entry without a node number says nothing but name, number and type (fuse_direntplus_link in Linux). */
static struct fuse_entry_out attributes(const struct listed *entry, uint64_t offset)
{
    struct fuse_entry_out out = {0};
    if (!entry->is_known || offset <= DOTS)
        return out;
    int64_t size = S_ISDIR(entry->mode) ? 4096 : entry->size;
    int64_t blocks = S_ISDIR(entry->mode) ? 8 : S_ISREG(entry->mode) ? (size + 511) / 512 : 0;
    out.nodeid = entry->ino;
    out.entry_valid = out.attr_valid = ctxfs_timeout;
    out.attr = (struct fuse_attr){
        .ino = entry->ino, .size = size, .blocks = entry->blocks < 0 ? blocks : entry->blocks,
        .atime = seconds(entry->atime), .mtime = seconds(entry->mtime), .ctime = seconds(entry->ctime),
        .atimensec = entry->atime - seconds(entry->atime) * NANO, .mtimensec = entry->mtime - seconds(entry->mtime) * NANO,
        .ctimensec = entry->ctime - seconds(entry->ctime) * NANO, .mode = entry->mode, .nlink = entry->nlink, .uid = entry->uid,
        .gid = entry->gid, .rdev = entry->rdev, .blksize = 4096};
    return out;
}

/* As many as there is room for; returns the bytes that they take. */
size_t write_entries(char *buffer, size_t size)
{
    size_t used = 0;
    const char *name = next.names;
    for (; ctxfs_written < next.count; ctxfs_written++) {
        const struct listed *entry = &next.entries[ctxfs_written];
        uint64_t offset = next.offset + ctxfs_written + 1;
        size_t length = FUSE_NAME_OFFSET_DIRENTPLUS + entry->name_length, padded = FUSE_DIRENT_ALIGN(length);
        if (used + padded > size)
            break;
        struct fuse_direntplus *out = (struct fuse_direntplus *)(buffer + used);
        out->entry_out = attributes(entry, offset);
        /* what is no directory and not known may turn out to be a symlink */
        int has_kind = entry->is_known || S_ISDIR(entry->mode);
        out->dirent = (struct fuse_dirent){
            .ino = entry->ino, .off = offset, .namelen = entry->name_length, .type = has_kind ? (entry->mode & S_IFMT) >> 12 : 0};
        memcpy(out->dirent.name, name, entry->name_length);
        memset(buffer + used + length, 0, padded - length);
        name += entry->name_length;
        used += padded;
    }
    if (next.fh && ctxfs_written == next.count)
        put(&ends, next.fh, next.offset + next.count);      /* without memory for it, Python is asked once more */
    memset(&next, 0, sizeof next);
    return used;
}

int is_end(uint64_t fh, uint64_t offset)
{
    return offset && count_of(&ends, fh) == offset;
}

void forget_end(uint64_t fh)
{
    drop(&ends, fh);
}

int note_released(uint64_t fh)
{
    if (ctxfs_released_count == RELEASED)
        return 0;
    drop(&ends, fh);
    drop(&noted, fh);
    ctxfs_released[ctxfs_released_count++] = fh;
    return 1;
}
