/* New files without Python, in a directory that Python has armed: every name in it is known here (ctxfs_arm), so one that is not known is free.
 *
 * A file that is made has its staging file, under the number of a range that Python has reserved, and a record in the log (storage/made_log.py),
 * both before anybody hears of it: a daemon that is killed then has all of it in the next one's recovery. Its bytes are in the staging file
 * before their WRITE is answered. Whatever fails (no space, no memory, no numbers left) is undone and left to Python, which knows what to say.
 *
 * Python takes over what was made in batches (fuse_made.py), before any of its own code runs. Nothing here is touched in any other thread. */
#include "fuse_ops.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* armed directories, one for all inodes with the same lowest bits; and names in all of them together */
#define DIRECTORIES 1024
#define NAMES_MOST (1 << 18)
/* until Python takes over */
#define MADE_MOST 256
#define ABSENT_MOST 256

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

static struct directory directories[DIRECTORIES];
static size_t names_count;
static struct { uint64_t next, end; int directory; } numbers = {0, 0, -1};
static struct { int fd; uint64_t generation; off_t end; } made_log = {-1, 0, 0};
static uint32_t crc_table[256];
/* of those that were made and not taken over */
static size_t open_files;

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
    ctxfs_made_count = ctxfs_absent_count = open_files = 0;
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

/* --- what is asked --- */

const struct fuse_attr *directory_attr(uint64_t ino)
{
    return armed(ino) ? &armed(ino)->attr : NULL;
}

int is_free(uint64_t parent, const char *name, size_t length)
{
    const struct directory *directory = armed(parent);
    return directory && length <= NAME_BYTES && !count_of(&directory->names, hash_of(name, length));
}

int note_absent(uint64_t parent, const char *name, size_t length)
{
    if (ctxfs_absent_count == ABSENT_MOST || !ctxfs_absences_left)
        return 0;
    struct absent *absent = &ctxfs_absent[ctxfs_absent_count++];
    absent->parent = parent;
    absent->length = length;
    memcpy(absent->name, name, length);
    ctxfs_absences_left--;
    return 1;
}

int must_be_taken(void)
{
    return ctxfs_made_count == MADE_MOST || ctxfs_absent_count == ABSENT_MOST;
}

struct made *made_of(uint64_t ino)
{
    for (size_t i = ctxfs_made_count; i-- > 0;)
        if (ctxfs_made[i].ino == ino)
            return &ctxfs_made[i];
    return NULL;
}

void measure_file(struct made *made)
{
    struct stat found;
    if (made->fd >= 0 && fstat(made->fd, &found) == 0)
        made->blocks = found.st_blocks;
}

int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * NANO + now.tv_nsec;
}

/* --- what is done --- */

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

/* A file with a free name in an armed directory. */
struct made *make_file(uint64_t parent, const char *name, size_t length, uint32_t mode, uint32_t flags, uint32_t uid, uint32_t gid)
{
    struct directory *directory = armed(parent);
    if (!ctxfs_may_make || ctxfs_made_count == MADE_MOST || numbers.next == numbers.end)
        return NULL;
    int fd = open_staging();
    if (fd < 0)
        return NULL;
    int64_t now = now_ns();
    struct made *made = &ctxfs_made[ctxfs_made_count];
    *made = (struct made){
        .ino = numbers.next, .parent = parent, .fh = new_handle(numbers.next), .atime = now, .mtime = now, .ctime = now, .made_ns = now,
        .mode = (mode & ~S_IFMT) | S_IFREG, .uid = uid, .gid = directory->attr.mode & S_ISGID ? directory->attr.gid : gid,
        .flags = flags, .fd = fd, .is_open = 1, .is_known = 1, .name_length = length};
    memcpy(made->name, name, length);
    if (!add(&noted, made->fh)) {
        unlink_staging(fd);
        return NULL;
    }
    if (!write_record(made, length, directory->local)) {
        take(&noted, made->fh);
        unlink_staging(fd);
        return NULL;
    }
    numbers.next++;
    ctxfs_made_count++;
    open_files++;
    directory->attr.mtime = directory->attr.ctime = now / NANO;
    directory->attr.mtimensec = directory->attr.ctimensec = now % NANO;
    ctxfs_add_name(parent, name, length);       /* without memory for it, Python answers for the directory from now on, */
    forget_attr(parent);                        /* and not with what it has answered before */
    return made;
}

int write_file(struct made *made, const void *bytes, uint32_t size, uint64_t offset)
{
    if (made->fd < 0 || size > ctxfs_bytes_left)
        return 0;
    if (pwrite(made->fd, bytes, size, offset) != (ssize_t)size)
        return 0;       /* whatever part of it was written, Python writes all of it */
    ctxfs_bytes_left -= size;
    made->is_changed = 1;
    if (offset + size > made->size)
        made->size = offset + size;
    return 1;
}

/* Other attributes. */
int change_file(struct made *made, const struct made *changed)
{
    if (!write_record(changed, 0, 0))
        return 0;
    *made = *changed;
    return 1;
}

int has_open_files(void)
{
    return open_files > 0;
}

void close_file(struct made *made)
{
    open_files--;
    measure_file(made);
    close(made->fd);
    made->fd = -1;
    made->is_open = 0;
    take(&noted, made->fh);
}
