/* Opening directories without Python: a library between pyfuse3 and libfuse, loaded before pyfuse3 (fuse_ops.py) so that pyfuse3 finds this
 * fuse_session_new first. It passes libfuse pyfuse3's table of operations with four of them exchanged:
 *
 *   opendir      answered here: the handle's number is (serial << 40 | inode), and the kernel may keep the listing (FOPEN_CACHE_DIR), which
 *                pyfuse3 cannot say. A directory that is listed again then costs one request that no Python runs for, instead of four.
 *   readdirplus  the handle is noted as one that Python knows by now (it makes its own part of it at the first listing), then as before
 *   releasedir   as before for a handle that Python knows; else answered here
 *
 * It owns the numbers of directory handles. All of it runs in the one thread of pyfuse3's loop. The kernel forgets a listing by itself when
 * an entry is changed through it; for changes from elsewhere the daemon invalidates the directory (edge/fuse_adapter.py). */
#define FUSE_USE_VERSION 35
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
#error "libfuse 3.17 makes sessions by another function"
#endif

#define SERIAL_SHIFT 40

static struct fuse_lowlevel_ops python;
static uint64_t serial;

/* requests that were answered here, for whoever asks how busy the mount is */
uint64_t ctxfs_answered;

/* handles that Python knows: a hash table with open addressing, 0 for a free slot (no handle is 0), never more than half full */
static uint64_t *noted;
static size_t slots, notes;

static size_t slot_of(uint64_t handle)
{
    size_t at = (handle * 0x9e3779b97f4a7c15u) >> 20 & (slots - 1);
    while (noted[at] && noted[at] != handle)
        at = (at + 1) & (slots - 1);
    return at;
}

static int grow(void)
{
    uint64_t *old = noted;
    size_t count = slots, wanted = slots ? 2 * slots : 64;
    uint64_t *made = calloc(wanted, sizeof *made);
    if (!made)
        return 0;
    noted = made;
    slots = wanted;
    for (size_t i = 0; i < count; i++)
        if (old[i])
            noted[slot_of(old[i])] = old[i];
    free(old);
    return 1;
}

static int note(uint64_t handle)
{
    if (slots && noted[slot_of(handle)])
        return 1;
    if (2 * (notes + 1) > slots && !grow())
        return 0;
    noted[slot_of(handle)] = handle;
    notes++;
    return 1;
}

static int take_note(uint64_t handle)
{
    if (!slots)
        return 0;
    size_t at = slot_of(handle);
    if (!noted[at])
        return 0;
    noted[at] = 0;
    notes--;
    /* what lies behind it in the same run may have been pushed there by it */
    for (size_t next = (at + 1) & (slots - 1); noted[next]; next = (next + 1) & (slots - 1)) {
        uint64_t moved = noted[next];
        noted[next] = 0;
        noted[slot_of(moved)] = moved;
    }
    return 1;
}

static void open_directory(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (ino >> SERIAL_SHIFT) {
        fuse_reply_err(req, EOVERFLOW);
        return;
    }
    fi->fh = ++serial << SERIAL_SHIFT | ino;
    fi->cache_readdir = 1;
    fi->keep_cache = 1;
    ctxfs_answered++;
    fuse_reply_open(req, fi);
}

static void read_directory(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
    if (note(fi->fh))
        python.readdirplus(req, ino, size, offset, fi);
    else
        fuse_reply_err(req, ENOMEM);
}

static void release_directory(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (take_note(fi->fh)) {
        python.releasedir(req, ino, fi);
        return;
    }
    ctxfs_answered++;
    fuse_reply_err(req, 0);
}

struct fuse_session *fuse_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *ops, size_t size, void *data)
{
    struct fuse_session *(*libfuse)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *);
    *(void **)&libfuse = dlsym(RTLD_NEXT, "fuse_session_new");
    if (!libfuse)
        return NULL;
    struct fuse_lowlevel_ops changed;
    memset(&changed, 0, sizeof changed);
    memcpy(&changed, ops, size < sizeof changed ? size : sizeof changed);
    python = changed;
    if (python.readdirplus && python.releasedir) {
        changed.opendir = open_directory;
        changed.readdirplus = read_directory;
        changed.releasedir = release_directory;
    }
    return libfuse(args, &changed, size, data);
}
