/* Requests that never reach pyfuse3, answered with the kernel's own protocol (linux/fuse.h).
 *
 * pyfuse3's loop waits for the kernel by ctxfs_serve (fuse_loop.py). It reads requests and answers what it can, until one comes for Python, none
 * comes for a moment, or its time is over. The request for Python is kept, and is what pyfuse3 reads next. Answered are opening and closing
 * what Python need not know of, the end of a listing (fuse_listing.c), attributes that it has answered before (fuse_ops.c), and, in an armed
 * directory (fuse_made.c):
 *
 *   LOOKUP of a free name, CREATE of it; and of a file that was made and not taken over yet WRITE, SETATTR but of the size, GETATTR, GETXATTR,
 *   RELEASE
 *
 * A handler here answers 1, or 0 when the request is for Python and nothing has happened. */
#include "fuse_ops.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* seconds that fit into 64 bits of nanoseconds */
#define SECONDS_MOST 9223372035LL

/* seconds that the kernel may trust an answer; and whether files have extended attributes at all */
uint64_t ctxfs_timeout, ctxfs_has_xattrs;

static struct fuse_session *session;
static int (*receive)(struct fuse_session *, struct fuse_buf *);
static struct { int is_there, result; struct fuse_buf buf; } kept;

/* --- answers --- */

/* 0 when the program was interrupted: nobody has the answer. */
static int reply(uint64_t unique, int error, const void *one, size_t one_length, const void *two, size_t two_length)
{
    struct fuse_out_header head = {sizeof head + one_length + two_length, error, unique};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)one, one_length}, {(void *)two, two_length}};
    return writev(fuse_session_fd(session), parts, two_length ? 3 : one_length ? 2 : 1) >= 0;
}

static int reply_attr(uint64_t unique, const struct fuse_attr *attr)
{
    struct fuse_attr_out out = {.attr_valid = ctxfs_timeout, .attr = *attr};
    reply(unique, 0, &out, sizeof out, NULL, 0);
    return 1;
}

static struct fuse_attr attr_of(struct made *made)
{
    measure_file(made);
    return (struct fuse_attr){
        .ino = made->ino, .size = made->size, .blocks = made->blocks, .atime = made->atime / NANO, .mtime = made->mtime / NANO,
        .ctime = made->ctime / NANO, .atimensec = made->atime % NANO, .mtimensec = made->mtime % NANO, .ctimensec = made->ctime % NANO,
        .mode = made->mode, .nlink = 1, .uid = made->uid, .gid = made->gid, .blksize = 4096};
}

/* --- requests --- */

static int look_up(const struct fuse_in_header *in, const char *name)
{
    size_t length = strlen(name);
    int is_dots = name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
    if (is_dots || !is_free(in->nodeid, name, length) || !note_absent(in->nodeid, name, length))
        return 0;
    struct fuse_entry_out out = {.entry_valid = ctxfs_timeout};
    reply(in->unique, 0, &out, sizeof out, NULL, 0);
    return 1;
}

static int create(const struct fuse_in_header *in, const struct fuse_create_in *arg)
{
    const char *name = (const char *)(arg + 1);
    size_t length = strlen(name);
    struct made *made = is_free(in->nodeid, name, length)
        ? make_file(in->nodeid, name, length, arg->mode, arg->flags, in->uid, in->gid) : NULL;
    if (!made)
        return 0;
    struct fuse_entry_out entry = {.nodeid = made->ino, .entry_valid = ctxfs_timeout, .attr_valid = ctxfs_timeout, .attr = attr_of(made)};
    struct fuse_open_out opened = {.fh = made->fh, .open_flags = FOPEN_KEEP_CACHE};
    if (!reply(in->unique, 0, &entry, sizeof entry, &opened, sizeof opened)) {      /* no release comes */
        close_file(made);
        made->is_known = 0;
    }
    return 1;
}

static int write_made(const struct fuse_in_header *in, const struct fuse_write_in *arg)
{
    struct made *made = made_of(in->nodeid);
    if (!made || arg->write_flags & FUSE_WRITE_KILL_SUIDGID || !write_file(made, arg + 1, arg->size, arg->offset))
        return 0;
    struct fuse_write_out out = {.size = arg->size};
    reply(in->unique, 0, &out, sizeof out, NULL, 0);
    return 1;
}

static int set_attr(const struct fuse_in_header *in, const struct fuse_setattr_in *arg)
{
    const uint32_t possible = FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW | FATTR_FH |
                              FATTR_LOCKOWNER | FATTR_CTIME;
    struct made *made = made_of(in->nodeid);
    if (!made || arg->valid & ~possible || arg->atime > SECONDS_MOST || arg->mtime > SECONDS_MOST || arg->ctime > SECONDS_MOST)
        return 0;
    struct made changed = *made;
    int64_t now = now_ns();
    if (arg->valid & FATTR_MODE)
        changed.mode = (made->mode & S_IFMT) | (arg->mode & ~S_IFMT);
    if (arg->valid & FATTR_UID)
        changed.uid = arg->uid;
    if (arg->valid & FATTR_GID)
        changed.gid = arg->gid;
    if (arg->valid & (FATTR_ATIME | FATTR_ATIME_NOW))
        changed.atime = arg->valid & FATTR_ATIME_NOW ? now : (int64_t)arg->atime * NANO + arg->atimensec;
    if (arg->valid & (FATTR_MTIME | FATTR_MTIME_NOW))
        changed.mtime = arg->valid & FATTR_MTIME_NOW ? now : (int64_t)arg->mtime * NANO + arg->mtimensec;
    changed.ctime = arg->valid & FATTR_CTIME ? (int64_t)arg->ctime * NANO + arg->ctimensec : now;
    if (!change_file(made, &changed))
        return 0;
    struct fuse_attr attr = attr_of(made);
    return reply_attr(in->unique, &attr);
}

static struct fuse_attr from_stat(const struct stat *known)
{
    return (struct fuse_attr){
        .ino = known->st_ino, .size = known->st_size, .blocks = known->st_blocks, .atime = known->st_atim.tv_sec,
        .mtime = known->st_mtim.tv_sec, .ctime = known->st_ctim.tv_sec, .atimensec = known->st_atim.tv_nsec,
        .mtimensec = known->st_mtim.tv_nsec, .ctimensec = known->st_ctim.tv_nsec, .mode = known->st_mode, .nlink = known->st_nlink,
        .uid = known->st_uid, .gid = known->st_gid, .rdev = known->st_rdev, .blksize = known->st_blksize};
}

static int get_attr(const struct fuse_in_header *in)
{
    struct made *made = made_of(in->nodeid);
    const struct fuse_attr *directory = directory_attr(in->nodeid);
    const struct stat *known = known_attr(in->nodeid);
    if (!made && !directory && !known)
        return 0;
    struct fuse_attr attr = made ? attr_of(made) : directory ? *directory : from_stat(known);
    return reply_attr(in->unique, &attr);
}

/* Before the first write to a file the kernel asks for security.capability. Without extended attributes Python says so, once for the mount. */
static int get_xattr(const struct fuse_in_header *in)
{
    if (!ctxfs_has_xattrs || !made_of(in->nodeid))
        return 0;
    reply(in->unique, -ENODATA, NULL, 0, NULL, 0);
    return 1;
}

static int release(const struct fuse_in_header *in, const struct fuse_release_in *arg, int is_directory)
{
    struct made *made = is_directory ? NULL : made_of(in->nodeid);
    if (made && made->is_open && made->fh == arg->fh)
        close_file(made);
    else if (!is_ours(arg->fh) || (count_of(&noted, arg->fh) && !(is_directory && note_released(arg->fh))))
        return 0;
    else if (!is_directory)
        take(&opens, in->nodeid);
    reply(in->unique, 0, NULL, 0, NULL, 0);
    return 1;
}

static int open_known(const struct fuse_in_header *in, const struct fuse_open_in *arg)
{
    if ((arg->flags & (O_ACCMODE | O_TRUNC)) != O_RDONLY || !count_of(&plain, in->nodeid) || !add(&opens, in->nodeid))
        return 0;
    struct fuse_open_out out = {.fh = new_handle(in->nodeid), .open_flags = FOPEN_KEEP_CACHE};
    if (!reply(in->unique, 0, &out, sizeof out, NULL, 0))
        take(&opens, in->nodeid);
    return 1;
}

static int open_directory(const struct fuse_in_header *in)
{
    if (in->nodeid >> SERIAL_SHIFT)
        return 0;
    struct fuse_open_out out = {.fh = new_handle(in->nodeid), .open_flags = FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR};
    reply(in->unique, 0, &out, sizeof out, NULL, 0);
    return 1;
}

static int read_end(const struct fuse_in_header *in, const struct fuse_read_in *arg)
{
    if (!is_end(arg->fh, arg->offset))
        return 0;
    reply(in->unique, 0, NULL, 0, NULL, 0);
    return 1;
}

static int answer(const void *request)
{
    const struct fuse_in_header *in = request;
    const void *arg = in + 1;
    switch (in->opcode) {
    case FUSE_LOOKUP: return look_up(in, arg);
    case FUSE_CREATE: return create(in, arg);
    case FUSE_WRITE: return write_made(in, arg);
    case FUSE_SETATTR: return set_attr(in, arg);
    case FUSE_GETATTR: return get_attr(in);
    case FUSE_GETXATTR: return get_xattr(in);
    case FUSE_OPEN: return open_known(in, arg);
    case FUSE_OPENDIR: return open_directory(in);
    case FUSE_READDIRPLUS: return read_end(in, arg);
    case FUSE_RELEASE: return release(in, arg, 0);
    case FUSE_RELEASEDIR: return release(in, arg, 1);
    default: return 0;
    }
}

/* --- the loop --- */

/* times as long is waited for, and answered to, a program that is in the middle of a file: taken over there, the rest of it is Python's */
#define PATIENCE 4

static long since_us(const struct timespec *began)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - began->tv_sec) * 1000000 + (now.tv_nsec - began->tv_nsec) / 1000;
}

/* Going to sleep and being woken takes longer than most programs take from an answer to their next request. So as long as requests come that
 * fast, the next one is looked out for: while the last one came within SPIN_US. Where processors are scarce it does not, and nothing spins. */
#define SPIN_US 50

static int wait_for_request(long linger_us)
{
    static int is_fast;
    struct pollfd waiting = {fuse_session_fd(session), POLLIN, 0};
    struct timespec began, linger = {0, linger_us * 1000};
    clock_gettime(CLOCK_MONOTONIC, &began);
    if (is_fast)
        do {
            int found = poll(&waiting, 1, 0);
            if (found)
                return found;
        } while (since_us(&began) < SPIN_US);
    int found = ppoll(&waiting, 1, &linger, NULL);
    is_fast = found > 0 && !is_fast && since_us(&began) < SPIN_US;
    return found;
}

/* Answers requests as they come. 0: none came for so many microseconds; 1: the next is for Python; 2: the time is over, or there is something
 * to take over before more of it is made. */
int ctxfs_serve(long linger_us, long limit_us)
{
    struct timespec began;
    clock_gettime(CLOCK_MONOTONIC, &began);
    while (!kept.is_there) {
        int found = wait_for_request(linger_us * (has_open_files() ? PATIENCE : 1));
        if (found <= 0)
            return found == 0 ? 0 : 2;      /* a signal: Python looks */
        kept.result = receive(session, &kept.buf);
        if (kept.result > 0 && !(kept.buf.flags & FUSE_BUF_IS_FD) && answer(kept.buf.mem))
            ctxfs_answered++;
        else
            kept.is_there = 1;
        if (must_be_taken() || since_us(&began) >= limit_us * (has_open_files() ? PATIENCE : 1))
            break;
    }
    return kept.is_there ? 1 : 2;
}

int receive_kept(struct fuse_session *of, struct fuse_buf *buf)
{
    if (!kept.is_there)
        return receive(of, buf);
    struct fuse_buf read = kept.buf;
    kept.buf = *buf;        /* its memory is as good for the next one */
    *buf = read;
    kept.is_there = 0;
    return kept.result;
}

void answer_session(struct fuse_session *made, int (*receive_buf)(struct fuse_session *, struct fuse_buf *))
{
    session = made;
    receive = receive_buf;
}
