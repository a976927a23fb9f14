/* Requests that never reach pyfuse3: a program that makes many small files is answered here, and Python takes over what was made in batches.
 *
 * pyfuse3's loop waits for the kernel by ctxfs_serve (fuse_loop.py). It reads requests and answers what it can, with the kernel's own protocol
 * (linux/fuse.h), until one comes for Python, none comes for a moment, or its time is over. The request for Python is kept, and is what pyfuse3
 * reads next. Whenever ctxfs_serve returns, before any other Python runs, Python takes over (made_files.py) what was made: so it never sees
 * a tree that is older than what programs see.
 *
 * What is answered: what fuse_ops.c answers, and, in a directory that Python has armed (ctxfs_arm: every name in it is known here, so that one
 * that is not known is free):
 *
 *   LOOKUP of a free name, CREATE of it; and of a file that was made and not taken over yet WRITE, SETATTR but of the size, GETATTR, RELEASE
 *
 * A file that was made has its staging file, under the number of a range that Python has reserved, and a record in the log (storage/made_log.py),
 * both before the answer: a daemon that is killed in between has all of it in the next one's recovery. Bytes are in the staging file before
 * a WRITE is answered. Whatever fails here (no space, no memory, no numbers left) is undone and left to Python, which knows what to say.
 *
 * Python may not run, and nothing here is touched, in any other thread meanwhile. */
#include "fuse_ops.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define NAME_BYTES 255
/* armed directories, one for all inodes with the same lowest bits; and names in all of them together */
#define DIRECTORIES 1024
#define NAMES_MOST (1 << 18)
/* until Python takes over */
#define MADE_MOST 256
#define ABSENT_MOST 256
#define NANO 1000000000LL
/* seconds that fit into 64 bits of nanoseconds */
#define SECONDS_MOST 9223372035LL

/* A file, as Python reads it (made_files.py). Times in ns. */
struct made {
    uint64_t ino, parent, fh, size, blocks;
    int64_t atime, mtime, ctime, made_ns;
    uint32_t mode, uid, gid, flags;
    int32_t fd;                         /* of the staging file; -1 when it was closed */
    uint32_t is_open, is_changed, is_known, name_length, spare;
    char name[NAME_BYTES + 1];
};

struct absent { uint64_t parent, length; char name[NAME_BYTES + 1]; };

/* of the log; a change of attributes has no name. `crc` is of all that follows it. */
struct record {
    uint32_t crc, length;
    uint64_t generation, ino, parent;
    int64_t atime, mtime, ctime;
    uint32_t mode, uid, gid, local, name_length, spare;
};

struct directory {
    uint64_t ino;                       /* 0: none */
    struct fuse_attr attr;
    uint32_t local;
    struct table names;                 /* their hashes */
};

struct made ctxfs_made[MADE_MOST];
struct absent ctxfs_absent[ABSENT_MOST];
uint64_t ctxfs_made_count, ctxfs_absent_count;
/* what Python allows until it takes over: bytes to write, absences to tell, and to make files at all */
uint64_t ctxfs_bytes_left, ctxfs_absences_left, ctxfs_may_make;
/* seconds that the kernel may trust an answer */
uint64_t ctxfs_timeout;

static struct directory directories[DIRECTORIES];
static size_t names_count;
static struct { uint64_t next, end; int directory; } numbers = {0, 0, -1};
static struct { int fd; uint64_t generation; off_t end; } made_log = {-1, 0, 0};
static uint32_t crc_table[256];

static struct fuse_session *session;
static int (*receive)(struct fuse_session *, struct fuse_buf *);
static struct { int is_there, result; struct fuse_buf buf; } kept;

/* --- what Python says --- */

static uint64_t hash_of(const char *name, size_t length)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)name[i]) * 0x100000001b3u;
    return hash;
}

static struct directory *armed(uint64_t ino)
{
    struct directory *found = &directories[ino % DIRECTORIES];
    return ino && found->ino == ino ? found : NULL;
}

static void disarm(struct directory *directory)
{
    names_count -= directory->names.used;
    empty(&directory->names);
    directory->ino = 0;
}

void ctxfs_disarm(uint64_t ino)
{
    if (armed(ino))
        disarm(armed(ino));
}

void ctxfs_disarm_all(void)
{
    for (size_t i = 0; i < DIRECTORIES; i++)
        if (directories[i].ino)
            disarm(&directories[i]);
}

int ctxfs_is_armed(uint64_t ino)
{
    return armed(ino) != NULL;
}

static int add_name(struct directory *directory, const char *name, size_t length)
{
    uint64_t hash = hash_of(name, length);
    if (count_of(&directory->names, hash))
        return 1;
    if (names_count >= NAMES_MOST || !add(&directory->names, hash))
        return 0;
    names_count++;
    return 1;
}

/* A name in an armed directory is not free any more. */
void ctxfs_add_name(uint64_t ino, const char *name, size_t length)
{
    struct directory *directory = armed(ino);
    if (directory && !add_name(directory, name, length))
        disarm(directory);
}

/* The directory's attributes, which a GETATTR is answered with. */
void ctxfs_set_directory(uint64_t ino, uint32_t mode, uint32_t nlink, uint32_t uid, uint32_t gid, int64_t atime, int64_t mtime, int64_t ctime)
{
    struct directory *directory = armed(ino);
    if (!directory)
        return;
    if (atime < 0 || mtime < 0 || ctime < 0) {      /* before 1970 */
        disarm(directory);
        return;
    }
    directory->attr = (struct fuse_attr){
        .ino = ino, .size = 4096, .blocks = 8, .atime = atime / NANO, .mtime = mtime / NANO, .ctime = ctime / NANO, .atimensec = atime % NANO,
        .mtimensec = mtime % NANO, .ctimensec = ctime % NANO, .mode = mode, .nlink = nlink, .uid = uid, .gid = gid, .blksize = 4096};
}

/* `names`: all that are in it, each after its length in two bytes. ctxfs_set_directory follows. 0 when there is no memory for it. */
int ctxfs_arm(uint64_t ino, uint32_t local, const unsigned char *names, size_t length)
{
    struct directory *directory = &directories[ino % DIRECTORIES];
    if (directory->ino)
        disarm(directory);
    directory->ino = ino;
    directory->local = local;
    for (size_t at = 0; at + 2 <= length;) {
        size_t name_length = names[at] | names[at + 1] << 8;
        if (!add_name(directory, (const char *)names + at + 2, name_length)) {
            disarm(directory);
            return 0;
        }
        at += 2 + name_length;
    }
    return 1;
}

/* Inode numbers of files to be made, and the directory of their staging files, which is ours from now on. */
void ctxfs_set_numbers(uint64_t first, uint64_t count, int directory)
{
    if (numbers.directory >= 0)
        close(numbers.directory);
    numbers.next = first;
    numbers.end = first + count;
    numbers.directory = directory;
}

uint64_t ctxfs_numbers_left(void)
{
    return numbers.end - numbers.next;
}

/* The log begins anew: what it has of earlier generations counts no more. */
void ctxfs_begin_log(int fd, uint64_t generation)
{
    made_log.fd = fd;
    made_log.generation = generation;
    made_log.end = 0;
}

/* Python has all of it, and the descriptors are its own. */
void ctxfs_taken(void)
{
    ctxfs_made_count = ctxfs_absent_count = 0;
}

/* --- the log --- */

static uint32_t crc_of(const void *data, size_t length)
{
    if (!crc_table[1])
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; bit++)
                value = value & 1 ? 0xedb88320u ^ value >> 1 : value >> 1;
            crc_table[i] = value;
        }
    uint32_t crc = ~0u;
    for (const unsigned char *at = data, *end = at + length; at < end; at++)
        crc = crc_table[(crc ^ *at) & 255] ^ crc >> 8;
    return ~crc;
}

static int write_record(const struct made *made, size_t name_length, uint32_t local)
{
    struct { struct record head; char name[NAME_BYTES + 1]; } record;
    size_t length = sizeof record.head + name_length;
    record.head = (struct record){0, length, made_log.generation, made->ino, made->parent, made->atime, made->mtime, made->ctime,
                                  made->mode, made->uid, made->gid, local, name_length, 0};
    memcpy(record.name, made->name, name_length);
    record.head.crc = crc_of((char *)&record + sizeof record.head.crc, length - sizeof record.head.crc);
    if (pwrite(made_log.fd, &record, length, made_log.end) != (ssize_t)length)
        return 0;
    made_log.end += length;
    return 1;
}

/* --- answers --- */

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

static struct made *made_of(uint64_t ino)
{
    for (size_t i = ctxfs_made_count; i-- > 0;)
        if (ctxfs_made[i].ino == ino)
            return &ctxfs_made[i];
    return NULL;
}

static void measure(struct made *made)
{
    struct stat found;
    if (made->fd >= 0 && fstat(made->fd, &found) == 0)
        made->blocks = found.st_blocks;
}

static struct fuse_attr attr_of(struct made *made)
{
    measure(made);
    return (struct fuse_attr){
        .ino = made->ino, .size = made->size, .blocks = made->blocks, .atime = made->atime / NANO, .mtime = made->mtime / NANO,
        .ctime = made->ctime / NANO, .atimensec = made->atime % NANO, .mtimensec = made->mtime % NANO, .ctimensec = made->ctime % NANO,
        .mode = made->mode, .nlink = 1, .uid = made->uid, .gid = made->gid, .blksize = 4096};
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * NANO + now.tv_nsec;
}

/* --- requests: 1 when it was answered, 0 when it is for Python, and nothing has happened --- */

static int look_up(const struct fuse_in_header *in, const char *name)
{
    const struct directory *directory = armed(in->nodeid);
    size_t length = strlen(name);
    if (!directory || length > NAME_BYTES || (name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]))))
        return 0;
    if (ctxfs_absent_count == ABSENT_MOST || !ctxfs_absences_left || count_of(&directory->names, hash_of(name, length)))
        return 0;
    struct absent *absent = &ctxfs_absent[ctxfs_absent_count++];
    absent->parent = in->nodeid;
    absent->length = length;
    memcpy(absent->name, name, length);
    ctxfs_absences_left--;
    struct fuse_entry_out out = {.entry_valid = ctxfs_timeout};
    reply(in->unique, 0, &out, sizeof out, NULL, 0);
    return 1;
}

/* The staging file of the next number; -1 when there is none. A number that cannot be used is left out. */
static int open_staging(void)
{
    char path[24];
    snprintf(path, sizeof path, "%llu", (unsigned long long)numbers.next);
    int fd = openat(numbers.directory, path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        numbers.next++;
    return fd;
}

static void unlink_staging(int fd)
{
    char path[24];
    snprintf(path, sizeof path, "%llu", (unsigned long long)numbers.next);
    close(fd);
    unlinkat(numbers.directory, path, 0);
}

static int create(const struct fuse_in_header *in, const struct fuse_create_in *arg)
{
    struct directory *directory = armed(in->nodeid);
    const char *name = (const char *)(arg + 1);
    size_t length = strlen(name);
    if (!directory || !ctxfs_may_make || length > NAME_BYTES || ctxfs_made_count == MADE_MOST || numbers.next == numbers.end ||
        count_of(&directory->names, hash_of(name, length)))
        return 0;
    int fd = open_staging();
    if (fd < 0)
        return 0;
    int64_t now = now_ns();
    struct made *made = &ctxfs_made[ctxfs_made_count];
    *made = (struct made){
        .ino = numbers.next, .parent = in->nodeid, .fh = new_handle(numbers.next), .atime = now, .mtime = now, .ctime = now,
        .made_ns = now, .mode = (arg->mode & ~S_IFMT) | S_IFREG, .uid = in->uid, .gid = directory->attr.mode & S_ISGID ? directory->attr.gid : in->gid,
        .flags = arg->flags, .fd = fd, .is_open = 1, .is_known = 1, .name_length = length};
    memcpy(made->name, name, length);
    if (!add(&noted, made->fh)) {
        unlink_staging(fd);
        return 0;
    }
    if (!write_record(made, length, directory->local)) {
        take(&noted, made->fh);
        unlink_staging(fd);
        return 0;
    }
    numbers.next++;
    ctxfs_made_count++;
    directory->attr.mtime = directory->attr.ctime = now / NANO;
    directory->attr.mtimensec = directory->attr.ctimensec = now % NANO;
    ctxfs_add_name(in->nodeid, name, length);       /* without memory for it, Python answers for the directory from now on */
    struct fuse_entry_out entry = {.nodeid = made->ino, .entry_valid = ctxfs_timeout, .attr_valid = ctxfs_timeout, .attr = attr_of(made)};
    struct fuse_open_out opened = {.fh = made->fh, .open_flags = FOPEN_KEEP_CACHE};
    if (!reply(in->unique, 0, &entry, sizeof entry, &opened, sizeof opened)) {      /* the program was interrupted: no release comes */
        take(&noted, made->fh);
        close(made->fd);
        made->fd = -1;
        made->is_open = made->is_known = 0;
    }
    return 1;
}

static int write_made(const struct fuse_in_header *in, const struct fuse_write_in *arg)
{
    struct made *made = made_of(in->nodeid);
    if (!made || made->fd < 0 || arg->size > ctxfs_bytes_left || arg->write_flags & FUSE_WRITE_KILL_SUIDGID)
        return 0;
    if (pwrite(made->fd, arg + 1, arg->size, arg->offset) != (ssize_t)arg->size)
        return 0;       /* whatever part of it was written, Python writes all of it */
    ctxfs_bytes_left -= arg->size;
    made->is_changed = 1;
    if (arg->offset + arg->size > made->size)
        made->size = arg->offset + arg->size;
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
    struct made before = *made;
    int64_t now = now_ns();
    if (arg->valid & FATTR_MODE)
        made->mode = (made->mode & S_IFMT) | (arg->mode & ~S_IFMT);
    if (arg->valid & FATTR_UID)
        made->uid = arg->uid;
    if (arg->valid & FATTR_GID)
        made->gid = arg->gid;
    if (arg->valid & (FATTR_ATIME | FATTR_ATIME_NOW))
        made->atime = arg->valid & FATTR_ATIME_NOW ? now : (int64_t)arg->atime * NANO + arg->atimensec;
    if (arg->valid & (FATTR_MTIME | FATTR_MTIME_NOW))
        made->mtime = arg->valid & FATTR_MTIME_NOW ? now : (int64_t)arg->mtime * NANO + arg->mtimensec;
    made->ctime = arg->valid & FATTR_CTIME ? (int64_t)arg->ctime * NANO + arg->ctimensec : now;
    if (!write_record(made, 0, 0)) {
        *made = before;
        return 0;
    }
    struct fuse_attr attr = attr_of(made);
    return reply_attr(in->unique, &attr);
}

static int get_attr(const struct fuse_in_header *in)
{
    double timeout;
    struct made *made = made_of(in->nodeid);
    const struct directory *directory = armed(in->nodeid);
    const struct stat *known = made || directory ? NULL : known_attr(in->nodeid, &timeout);
    struct fuse_attr attr;
    if (made)
        attr = attr_of(made);
    else if (directory)
        attr = directory->attr;
    else if (known)
        attr = (struct fuse_attr){
            .ino = known->st_ino, .size = known->st_size, .blocks = known->st_blocks, .atime = known->st_atim.tv_sec,
            .mtime = known->st_mtim.tv_sec, .ctime = known->st_ctim.tv_sec, .atimensec = known->st_atim.tv_nsec,
            .mtimensec = known->st_mtim.tv_nsec, .ctimensec = known->st_ctim.tv_nsec, .mode = known->st_mode, .nlink = known->st_nlink,
            .uid = known->st_uid, .gid = known->st_gid, .rdev = known->st_rdev, .blksize = known->st_blksize};
    else
        return 0;
    return reply_attr(in->unique, &attr);
}

static int release_made(const struct fuse_in_header *in, const struct fuse_release_in *arg)
{
    struct made *made = made_of(in->nodeid);
    if (!made || !made->is_open || made->fh != arg->fh)
        return 0;
    measure(made);
    close(made->fd);
    made->fd = -1;
    made->is_open = 0;
    take(&noted, made->fh);
    reply(in->unique, 0, NULL, 0, NULL, 0);
    return 1;
}

static int release(const struct fuse_in_header *in, const struct fuse_release_in *arg, int is_directory)
{
    if (!is_directory && release_made(in, arg))
        return 1;
    if (!is_ours(arg->fh) || count_of(&noted, arg->fh))
        return 0;
    if (!is_directory)
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
    case FUSE_OPEN: return open_known(in, arg);
    case FUSE_OPENDIR: return open_directory(in);
    case FUSE_RELEASE: return release(in, arg, 0);
    case FUSE_RELEASEDIR: return release(in, arg, 1);
    default: return 0;
    }
}

/* --- the loop --- */

static int has_time(struct timespec *began, long limit_us)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - began->tv_sec) * 1000000 + (now.tv_nsec - began->tv_nsec) / 1000 < limit_us;
}

/* Answers requests as they come. 0: none came for so many microseconds; 1: the next is for Python; 2: the time is over, or there is something
 * to take over before more of it is made. */
int ctxfs_serve(long linger_us, long limit_us)
{
    struct timespec began, linger = {0, linger_us * 1000};
    clock_gettime(CLOCK_MONOTONIC, &began);
    while (!kept.is_there) {
        struct pollfd waiting = {fuse_session_fd(session), POLLIN, 0};
        int found = ppoll(&waiting, 1, &linger, NULL);
        if (found <= 0)
            return found == 0 ? 0 : 2;      /* a signal: Python looks */
        kept.result = receive(session, &kept.buf);
        if (kept.result > 0 && !(kept.buf.flags & FUSE_BUF_IS_FD) && answer(kept.buf.mem))
            ctxfs_answered++;
        else
            kept.is_there = 1;
        if (ctxfs_made_count == MADE_MOST || ctxfs_absent_count == ABSENT_MOST || !has_time(&began, limit_us))
            break;
    }
    return kept.is_there ? 1 : 2;
}

int made_receive(struct fuse_session *of, struct fuse_buf *buf)
{
    if (!kept.is_there)
        return receive(of, buf);
    struct fuse_buf read = kept.buf;
    kept.buf = *buf;        /* its memory is as good for the next one */
    *buf = read;
    kept.is_there = 0;
    return kept.result;
}

void made_session(struct fuse_session *made, int (*receive_buf)(struct fuse_session *, struct fuse_buf *))
{
    session = made;
    receive = receive_buf;
}
