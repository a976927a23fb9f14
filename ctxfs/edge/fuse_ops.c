/* Opening and closing without Python: a library between pyfuse3 and libfuse, loaded before pyfuse3 (fuse_ops.py) so that pyfuse3 finds this
 * fuse_session_new first. It passes libfuse pyfuse3's table of operations with some of them exchanged:
 *
 *   opendir        answered here, and the kernel may keep the listing (FOPEN_CACHE_DIR), which pyfuse3 cannot say: a directory that is listed
 *                  again costs one request that no Python runs for, instead of four
 *   readdirplus, read, fsync    Python learns of the handle by the first of these, and makes its own part of it then
 *   releasedir, release         of a handle that Python never heard of: answered here; else as before
 *   init           the kernel may keep targets of symlinks, which pyfuse3 cannot say: it asks for one once, not whenever a path leads through it.
 *                  An inode's target never becomes another one (reconcile.py gives the name another inode)
 *   readdirplus    an entry of generation NAME_ONLY has no attributes: the kernel asks for them when somebody wants them; one of generation WHOLE
 *                  stands for all that fuse_listing.c has
 *
 * Before that, fuse_answers.c answers what needs none of pyfuse3; for it this half knows two things that Python has said:
 *
 *   plain files (ctxfs_set_plain)    may be opened for reading without it
 *   attributes     as it answered them last, as long as it has changed nothing at all since (ctxfs_changes). With its writeback cache the
 *                  kernel asks for them after each close of a file (fuse_flush in Linux).
 *
 * It owns the numbers of the handles that it makes: (serial << 40 | inode), where Python's own are below 1 << 40. And it counts, for each
 * inode, the open handles of files that Python does not know (ctxfs_opens). All of it runs in the one thread of pyfuse3's loop. The kernel
 * forgets a listing by itself when an entry is changed through it; for changes from elsewhere the daemon invalidates the directory. */
#include "fuse_ops.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
#error "libfuse 3.17 makes sessions by another function"
#endif

#define NAME_ONLY UINT64_MAX
#define WHOLE (UINT64_MAX - 1)

struct table noted;     /* handles of ours that Python knows */
struct table plain;     /* inodes that may be opened for reading here */
struct table opens;     /* inode -> handles of ours that Python does not know */
static struct fuse_lowlevel_ops python;
/* of handles; 24 bits of it are in a number, and never none of them */
static uint64_t serial;

/* requests that were answered here, for whoever asks how busy the mount is */
uint64_t ctxfs_answered;

/* how many changes Python has made to what attributes are made from; it says so before each request and each answer */
uint64_t ctxfs_changes;

/* attributes as they were answered last; one place for all inodes with the same lowest bits */
#define ATTRS 16384
static struct { uint64_t ino, changes; struct stat attr; } attrs[ATTRS];

static struct {
    struct fuse_session *(*session_new)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *);
    int (*reply_attr)(fuse_req_t, const struct stat *, double);
    size_t (*add_entry)(fuse_req_t, char *, size_t, const char *, const struct fuse_entry_param *, off_t);
    int (*receive)(struct fuse_session *, struct fuse_buf *);
} libfuse;

static size_t slot_of(const struct table *table, uint64_t number)
{
    size_t at = (number * 0x9e3779b97f4a7c15u) >> 20 & (table->size - 1);
    while (table->slots[at].count && table->slots[at].number != number)
        at = (at + 1) & (table->size - 1);
    return at;
}

uint64_t count_of(const struct table *table, uint64_t number)
{
    return table->size ? table->slots[slot_of(table, number)].count : 0;
}

static int grow(struct table *table)
{
    struct table wider = {NULL, table->size ? 2 * table->size : 64, table->used};
    wider.slots = calloc(wider.size, sizeof *wider.slots);
    if (!wider.slots)
        return 0;
    for (size_t i = 0; i < table->size; i++)
        if (table->slots[i].count)
            wider.slots[slot_of(&wider, table->slots[i].number)] = table->slots[i];
    free(table->slots);
    *table = wider;
    return 1;
}

int put(struct table *table, uint64_t number, uint64_t count)
{
    if (2 * (table->used + 1) > table->size && !grow(table))
        return 0;
    size_t at = slot_of(table, number);
    table->used += !table->slots[at].count;
    table->slots[at].number = number;
    table->slots[at].count = count;
    return 1;
}

int add(struct table *table, uint64_t number)
{
    return put(table, number, count_of(table, number) + 1);
}

void empty(struct table *table)
{
    free(table->slots);
    memset(table, 0, sizeof *table);
}

int take(struct table *table, uint64_t number)
{
    uint64_t count = count_of(table, number);
    if (count > 1)
        table->slots[slot_of(table, number)].count--;
    else
        drop(table, number);
    return count != 0;
}

void drop(struct table *table, uint64_t number)
{
    if (!count_of(table, number))
        return;
    size_t at = slot_of(table, number);
    table->slots[at].count = 0;
    table->used--;
    /* what lies behind it in the same run may have been pushed there by it */
    for (size_t next = (at + 1) & (table->size - 1); table->slots[next].count; next = (next + 1) & (table->size - 1)) {
        uint64_t number_there = table->slots[next].number, count_there = table->slots[next].count;
        table->slots[next].count = 0;
        size_t home = slot_of(table, number_there);
        table->slots[home].number = number_there;
        table->slots[home].count = count_there;
    }
}

/* --- what Python calls --- */

void ctxfs_set_plain(uint64_t ino, int is_plain)
{
    if (!is_plain)
        take(&plain, ino);
    else if (!count_of(&plain, ino) && !(ino >> SERIAL_SHIFT))
        add(&plain, ino);       /* without memory for it, it is opened by Python */
}

uint64_t ctxfs_opens(uint64_t ino)
{
    return count_of(&opens, ino);
}

/* inodes with such handles */
uint64_t ctxfs_open_inodes(void)
{
    return opens.used;
}

/* --- handles --- */

int is_ours(uint64_t fh)
{
    return fh >> SERIAL_SHIFT != 0;
}

uint64_t new_handle(fuse_ino_t ino)
{
    uint64_t fh;
    do
        fh = ++serial << SERIAL_SHIFT | ino;
    while (!is_ours(fh) || count_of(&noted, fh));       /* after 16 million it begins anew */
    return fh;
}

/* Python is about to be asked for the handle. 0 when there is no memory to remember that. */
static int hand_over(fuse_ino_t ino, const struct fuse_file_info *fi)
{
    if (!is_ours(fi->fh) || count_of(&noted, fi->fh))
        return 1;
    if (!add(&noted, fi->fh))
        return 0;
    take(&opens, ino);
    return 1;
}

/* --- operations --- */

static void begin(void *data, struct fuse_conn_info *connection)
{
    if (python.init)
        python.init(data, connection);
    connection->want |= connection->capable & FUSE_CAP_CACHE_SYMLINKS;
}

static void open_directory(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (ino >> SERIAL_SHIFT) {
        fuse_reply_err(req, EOVERFLOW);
        return;
    }
    fi->fh = new_handle(ino);
    fi->cache_readdir = 1;
    fi->keep_cache = 1;
    ctxfs_answered++;
    fuse_reply_open(req, fi);
}

static void read_directory(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
    forget_end(fi->fh);
    if (count_of(&noted, fi->fh) || add(&noted, fi->fh))
        python.readdirplus(req, ino, size, offset, fi);
    else
        fuse_reply_err(req, ENOMEM);
}

static void release_directory(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    forget_end(fi->fh);
    if (take(&noted, fi->fh)) {
        python.releasedir(req, ino, fi);
        return;
    }
    ctxfs_answered++;
    fuse_reply_err(req, 0);
}

static void read_file(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
    if (hand_over(ino, fi))
        python.read(req, ino, size, offset, fi);
    else
        fuse_reply_err(req, ENOMEM);
}

static void sync_file(fuse_req_t req, fuse_ino_t ino, int only_data, struct fuse_file_info *fi)
{
    if (hand_over(ino, fi))
        python.fsync(req, ino, only_data, fi);
    else
        fuse_reply_err(req, ENOMEM);
}

static void release_file(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (!is_ours(fi->fh) || take(&noted, fi->fh)) {
        python.release(req, ino, fi);
        return;
    }
    take(&opens, ino);
    ctxfs_answered++;
    fuse_reply_err(req, 0);
}

const struct stat *known_attr(fuse_ino_t ino)
{
    return attrs[ino % ATTRS].ino == ino && attrs[ino % ATTRS].changes == ctxfs_changes ? &attrs[ino % ATTRS].attr : NULL;
}

void forget_attr(fuse_ino_t ino)
{
    if (attrs[ino % ATTRS].ino == ino)
        attrs[ino % ATTRS].ino = 0;
}

/* --- what pyfuse3 calls --- */

int fuse_session_receive_buf(struct fuse_session *session, struct fuse_buf *buf)
{
    return receive_kept(session, buf);
}

int fuse_reply_attr(fuse_req_t req, const struct stat *attr, double timeout)
{
    attrs[attr->st_ino % ATTRS].ino = attr->st_ino;
    attrs[attr->st_ino % ATTRS].changes = ctxfs_changes;
    attrs[attr->st_ino % ATTRS].attr = *attr;
    return libfuse.reply_attr(req, attr, timeout);
}

/* An entry without a node number says nothing but name, number and type (fuse_direntplus_link in Linux). */
size_t fuse_add_direntry_plus(fuse_req_t req, char *buffer, size_t size, const char *name, const struct fuse_entry_param *entry, off_t next)
{
    if (entry->generation == WHOLE)
        return write_entries(buffer, size);
    if (entry->generation != NAME_ONLY)
        return libfuse.add_entry(req, buffer, size, name, entry, next);
    struct fuse_entry_param plain_entry = *entry;
    plain_entry.ino = plain_entry.generation = 0;
    return libfuse.add_entry(req, buffer, size, name, &plain_entry, next);
}

struct fuse_session *fuse_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *ops, size_t size, void *data)
{
    *(void **)&libfuse.session_new = dlsym(RTLD_NEXT, "fuse_session_new");
    *(void **)&libfuse.reply_attr = dlsym(RTLD_NEXT, "fuse_reply_attr");
    *(void **)&libfuse.add_entry = dlsym(RTLD_NEXT, "fuse_add_direntry_plus");
    *(void **)&libfuse.receive = dlsym(RTLD_NEXT, "fuse_session_receive_buf");
    if (!libfuse.session_new || !libfuse.reply_attr || !libfuse.add_entry || !libfuse.receive)
        return NULL;
    struct fuse_lowlevel_ops changed;
    memset(&changed, 0, sizeof changed);
    memcpy(&changed, ops, size < sizeof changed ? size : sizeof changed);
    python = changed;
    changed.init = begin;
    changed.opendir = open_directory;
    changed.readdirplus = read_directory;
    changed.releasedir = release_directory;
    changed.read = read_file;
    changed.fsync = sync_file;
    changed.release = release_file;
    struct fuse_session *session = libfuse.session_new(args, &changed, size, data);
    answer_session(session, libfuse.receive);
    return session;
}
