/* An undo log beneath a real process, for powercut.py: LD_PRELOAD it, SIGKILL the process, and what it had not synced can
 * be taken back, as a power cut would.
 *
 * For every file under POWERCUT_WATCH: a write or truncation goes through, but first what it overwrites is appended to
 * POWERCUT_UNDO/log.<pid> by a plain write (the page cache survives SIGKILL). An fsync or fdatasync that came back appends
 * SYNCED. Names (create, link, mkdir, rmdir, unlink, rename) are logged too; a file that loses its name keeps a second
 * one in POWERCUT_UNDO, from where it can come back. What cannot be tracked aborts the process, loudly.
 *
 * Descriptors are not tracked, files are: a call asks fstat which file it is about, so that dup, fork and inherited
 * descriptors need no care. Sequence numbers are CLOCK_MONOTONIC: one order over all processes. System calls are made
 * directly, so that nothing here meets itself. POWERCUT_FSYNC=skip leaves the real fsync out, for speed.
 *
 * Not seen: chmod, chown and times; what libc writes within itself (fopen for writing aborts); sync, syncfs and
 * sync_file_range make nothing durable here (the last does not in Linux either). 64-bit Linux only.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(off_t) == 8 && sizeof(void *) == 8, "powercut needs 64-bit Linux");

enum { WRITE = 1, TRUNCATE, SYNCED, DIR_SYNCED, CREATE, LINK, MKDIR, RMDIR, UNLINK, RENAME };

struct record { /* powercut.py reads it as "=8Q", followed by `payload` bytes */
    uint64_t kind, seq, dev, ino;
    uint64_t offset, length, size; /* the range that changes; the file's size before */
    uint64_t payload;              /* old bytes (what lay beyond the old end is zeros), or paths, each with its NUL */
};

struct file {
    dev_t dev;
    ino_t ino;
    uint64_t synced; /* what came before is durable, or belonged to an earlier file of that number */
    struct file *next;
};

#define BUCKETS 256
#define COMPACT (4 << 20) /* bytes of log after which what is durable is dropped from it */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char watch[PATH_MAX], undo[PATH_MAX];
static bool active, skip_fsync;
static struct file *files[BUCKETS];
static uint64_t last_seq, logged, compact_at = COMPACT;

static void lock(void) { pthread_mutex_lock(&mutex); }
static void unlock(void) { pthread_mutex_unlock(&mutex); }

static void die(const char *what, const char *where) {
    char text[PATH_MAX + 200];
    int size = snprintf(text, sizeof text, "powercut: %s: %s (errno %d)\n", where, what, errno);
    syscall(SYS_write, 2, text, (size_t)size);
    abort();
}

static bool format(char out[PATH_MAX], const char *pattern, ...) { /* does it fit? */
    va_list arguments;
    va_start(arguments, pattern);
    int size = vsnprintf(out, PATH_MAX, pattern, arguments);
    va_end(arguments);
    return size < PATH_MAX;
}

/* --- the log ---------------------------------------------------------------------------------- */
static uint64_t next_seq(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t seq = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    return last_seq = seq > last_seq ? seq : last_seq + 1;
}

static void log_path(char out[PATH_MAX], const char *name) {
    if (!format(out, "%s/%s.%d", undo, name, getpid())) die("path too long", undo);
}

static int open_log(const char *name, int flags) {
    char path[PATH_MAX];
    log_path(path, name);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) die("cannot open the undo log", path);
    return fd;
}

static void append(struct record record, const void *payload) {
    struct iovec parts[] = {{&record, sizeof record}, {(void *)payload, record.payload}};
    int fd = open_log("log", O_WRONLY | O_APPEND);
    if (syscall(SYS_writev, fd, parts, 2) != (ssize_t)(sizeof record + record.payload))
        die("cannot write the undo log", undo);
    syscall(SYS_close, fd);
    logged += sizeof record + record.payload;
}

static struct file *find(dev_t dev, ino_t ino) {
    struct file *file = files[ino % BUCKETS];
    while (file && (file->ino != ino || file->dev != dev)) file = file->next;
    return file;
}

static struct file *track(const struct stat *st) {
    struct file *file = find(st->st_dev, st->st_ino);
    if (file) return file;
    if (!(file = calloc(1, sizeof *file))) die("out of memory", watch);
    *file = (struct file){st->st_dev, st->st_ino, 0, files[st->st_ino % BUCKETS]};
    return files[st->st_ino % BUCKETS] = file;
}

/* Drop records of what is durable. The new log is complete in the page cache before it takes the old one's place. */
static void compact(void) {
    char from[PATH_MAX], to[PATH_MAX];
    log_path(from, "log");
    log_path(to, "new");
    int fd = open_log("log", O_RDONLY), fresh = open_log("new", O_WRONLY | O_TRUNC);
    struct stat st;
    char *bytes = fstat(fd, &st) || !st.st_size ? MAP_FAILED
        : (char *)syscall(SYS_mmap, NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED) die("cannot read the undo log", from);
    logged = 0;
    for (char *at = bytes; at < bytes + st.st_size;) {
        struct record record;
        memcpy(&record, at, sizeof record);
        size_t size = sizeof record + record.payload;
        struct file *file = record.kind <= SYNCED ? find(record.dev, record.ino) : NULL;
        if (!file || record.seq >= file->synced) {
            if (syscall(SYS_write, fresh, at, size) != (ssize_t)size) die("cannot write the undo log", to);
            logged += size;
        }
        at += size;
    }
    syscall(SYS_munmap, bytes, st.st_size);
    syscall(SYS_close, fd);
    syscall(SYS_close, fresh);
    if (syscall(SYS_renameat2, AT_FDCWD, to, AT_FDCWD, from, 0)) die("cannot replace the undo log", from);
    compact_at = logged * 2 > COMPACT ? logged * 2 : COMPACT;
}

static void synced(struct file *file, uint64_t seq) {
    if (seq > file->synced) file->synced = seq;
    append((struct record){.kind = SYNCED, .seq = seq, .dev = file->dev, .ino = file->ino}, NULL);
    if (logged > compact_at) compact();
}

/* Log that bytes `offset`, `length` are about to change. Needs the lock, and a descriptor that can be read. */
static void save(uint64_t kind, int fd, const struct stat *st, uint64_t offset, uint64_t length) {
    uint64_t size = (uint64_t)st->st_size, end = offset + length < size ? offset + length : size, have = 0;
    uint64_t want = offset < end ? end - offset : 0;
    char *old = malloc(want + 1);
    if (!old) die("out of memory", watch);
    while (have < want) {
        ssize_t count = syscall(SYS_pread64, fd, old + have, want - have, offset + have);
        if (count <= 0) die("cannot read what a write replaces (a descriptor not opened under the shim?)", watch);
        have += (uint64_t)count;
    }
    append((struct record){kind, next_seq(), st->st_dev, st->st_ino, offset, length, size, want}, old);
    free(old);
}

static void name(uint64_t kind, const struct stat *st, const char *path, const char *to, const char *grave) {
    char payload[3 * PATH_MAX];
    int size = snprintf(payload, sizeof payload, "%s%c%s%c%s", path, 0, to, 0, grave) + 1;
    struct record record = {.kind = kind, .seq = next_seq(), .dev = st->st_dev, .ino = st->st_ino, .payload = size};
    append(record, payload);
    if (kind == CREATE) track(st)->synced = record.seq; /* nothing of a new file is unsynced but its name */
}

/* --- which file ------------------------------------------------------------------------------- */
static bool inside(const char *path) {
    size_t size = strlen(watch);
    return !strncmp(path, watch, size) && (!path[size] || path[size] == '/');
}

static bool fd_inside(int fd, char path[PATH_MAX]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    if (size < 0) return false;
    path[size] = 0;
    return inside(path);
}

/* The absolute path in `out`, without symlinks (but the last part's, unless `follow`); is it under the watched one? */
static bool locate(int dirfd, const char *path, bool follow, char out[PATH_MAX]) {
    char joined[PATH_MAX], head[PATH_MAX];
    if (!active || !path || !*path) return false;
    bool from_here = *path == '/' || dirfd == AT_FDCWD;
    if (!(from_here ? format(joined, "%s", path) : format(joined, "/proc/self/fd/%d/%s", dirfd, path))) return false;
    if (follow && realpath(joined, out)) return inside(out);
    for (size_t end = strlen(joined); end > 1 && joined[end - 1] == '/';) joined[--end] = 0;
    char *slash = strrchr(joined, '/'), *last = slash ? slash + 1 : joined;
    if (slash) *slash = 0;
    if (!realpath(!slash ? "." : *joined ? joined : "/", head)) return false;
    return format(out, "%s/%s", head, last) && inside(out);
}

/* The file behind `fd` if it is tracked: then the lock is held. */
static struct file *enter(int fd, struct stat *st) {
    char path[PATH_MAX];
    int before = errno;
    if (!active || fstat(fd, st) || !S_ISREG(st->st_mode)) return errno = before, NULL;
    lock();
    struct file *file = find(st->st_dev, st->st_ino);
    if (file && !fstat(fd, st)) return file; /* its size again: another thread may have held the lock */
    if (fd_inside(fd, path) && !fstat(fd, st)) return track(st);
    unlock();
    errno = before;
    return NULL;
}

/* What cannot be tracked must not pass unseen. */
static void refuse(int fd, const char *what) {
    struct stat st;
    char path[PATH_MAX];
    if (enter(fd, &st)) {
        fd_inside(fd, path);
        die(what, path);
    }
}

__attribute__((constructor)) static void begin(void) {
    const char *watched = getenv("POWERCUT_WATCH"), *side = getenv("POWERCUT_UNDO"), *fsyncs = getenv("POWERCUT_FSYNC");
    if (!watched && !side) return;
    if (!watched || !side) die("set both POWERCUT_WATCH and POWERCUT_UNDO", "environment");
    if (!realpath(watched, watch)) die("not there", watched);
    if (!realpath(side, undo)) die("not there", side);
    skip_fsync = fsyncs && !strcmp(fsyncs, "skip");
    syscall(SYS_close, open_log("log", O_WRONLY)); /* it shows that the shim was there */
    pthread_atfork(lock, unlock, unlock);
    active = true;
}

/* --- opening ---------------------------------------------------------------------------------- */
static int truncate_tracked(int fd, const struct stat *st, off_t size) {
    if (size >= 0 && size != st->st_size) {
        off_t cut = size < st->st_size ? st->st_size - size : 0;
        save(TRUNCATE, fd, st, (uint64_t)size, (uint64_t)cut);
    }
    return (int)syscall(SYS_ftruncate, fd, size);
}

static int do_open(int dirfd, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    bool changes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    if (!changes || (flags & O_TMPFILE) == O_TMPFILE || flags & O_PATH || !locate(dirfd, path, true, full))
        return (int)syscall(SYS_openat, dirfd, path, flags, mode);
    lock();
    struct stat st;
    bool existed = !stat(full, &st);
    int readable = (flags & O_ACCMODE) == O_WRONLY ? (flags & ~O_ACCMODE) | O_RDWR : flags;
    int fd = (int)syscall(SYS_openat, dirfd, path, readable & ~O_TRUNC, mode);
    if (fd >= 0 && !fstat(fd, &st) && S_ISREG(st.st_mode)) {
        track(&st);
        if (!existed) name(CREATE, &st, full, "", "");
        else if (flags & O_TRUNC) truncate_tracked(fd, &st, 0);
    }
    unlock();
    return fd;
}

static mode_t mode_of(int flags, va_list arguments) {
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(arguments, mode_t) : 0;
}

#define OPEN(function)                                                     \
    int function(const char *path, int flags, ...) {                       \
        va_list arguments;                                                 \
        va_start(arguments, flags);                                        \
        mode_t mode = mode_of(flags, arguments);                           \
        va_end(arguments);                                                 \
        return do_open(AT_FDCWD, path, flags, mode);                       \
    }
#define OPENAT(function)                                                   \
    int function(int dirfd, const char *path, int flags, ...) {            \
        va_list arguments;                                                 \
        va_start(arguments, flags);                                        \
        mode_t mode = mode_of(flags, arguments);                           \
        va_end(arguments);                                                 \
        return do_open(dirfd, path, flags, mode);                          \
    }
#define ALIAS(name, of) extern __typeof__(of) name __attribute__((alias(#of)))

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
int __open_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
int __openat_2(int dirfd, const char *path, int flags) { return do_open(dirfd, path, flags, 0); }
int __openat64_2(int dirfd, const char *path, int flags) { return do_open(dirfd, path, flags, 0); }
int creat(const char *path, mode_t mode) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
ALIAS(creat64, creat);

FILE *fopen(const char *path, const char *mode) { /* libc's own writes cannot be seen */
    char full[PATH_MAX];
    if (strpbrk(mode, "wa+") && locate(AT_FDCWD, path, true, full)) die("fopen for writing", full);
    FILE *(*real)(const char *, const char *) = (FILE *(*)(const char *, const char *))dlsym(RTLD_NEXT, "fopen");
    return real(path, mode);
}
ALIAS(fopen64, fopen);

/* --- writing ---------------------------------------------------------------------------------- */
/* `at` < 0: at the descriptor's own position. */
static ssize_t do_write(int fd, const struct iovec *parts, int count, off_t at) {
    struct stat st;
    struct file *file = enter(fd, &st);
    if (file) {
        int flags = fcntl(fd, F_GETFL);
        off_t offset = flags & O_APPEND ? st.st_size : at < 0 ? lseek(fd, 0, SEEK_CUR) : at;
        uint64_t length = 0;
        for (int part = 0; part < count; part++) length += parts[part].iov_len;
        save(WRITE, fd, &st, (uint64_t)offset, length);
        ssize_t wrote = at < 0 ? syscall(SYS_writev, fd, parts, count) : syscall(SYS_pwritev, fd, parts, count, at, 0);
        if (wrote >= 0 && flags & O_DSYNC) synced(file, next_seq());
        unlock();
        return wrote;
    }
    return at < 0 ? syscall(SYS_writev, fd, parts, count) : syscall(SYS_pwritev, fd, parts, count, at, 0);
}

static ssize_t invalid(void) { return errno = EINVAL, -1; }

ssize_t write(int fd, const void *data, size_t size) {
    return do_write(fd, &(struct iovec){(void *)data, size}, 1, -1);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    return at < 0 ? invalid() : do_write(fd, &(struct iovec){(void *)data, size}, 1, at);
}
ssize_t writev(int fd, const struct iovec *parts, int count) { return do_write(fd, parts, count, -1); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    return at < 0 ? invalid() : do_write(fd, parts, count, at);
}
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags) {
    if (flags) refuse(fd, "pwritev2 with flags");
    if (flags) return syscall(SYS_pwritev2, fd, parts, count, at, 0, flags);
    return do_write(fd, parts, count, at);
}
ALIAS(pwrite64, pwrite);
ALIAS(pwritev64, pwritev);
ALIAS(pwritev64v2, pwritev2);

int ftruncate(int fd, off_t size) {
    struct stat st;
    struct file *file = enter(fd, &st);
    if (!file) return (int)syscall(SYS_ftruncate, fd, size);
    int result = truncate_tracked(fd, &st, size);
    unlock();
    return result;
}
int truncate(const char *path, off_t size) {
    char full[PATH_MAX];
    if (locate(AT_FDCWD, path, true, full)) die("truncate by path", full);
    return (int)syscall(SYS_truncate, path, size);
}
int fallocate(int fd, int mode, off_t offset, off_t length) {
    struct stat st;
    if (mode) refuse(fd, "fallocate with a mode");
    if (mode || !enter(fd, &st)) return (int)syscall(SYS_fallocate, fd, mode, offset, length);
    if (offset + length > st.st_size) save(TRUNCATE, fd, &st, (uint64_t)(offset + length), 0);
    int result = (int)syscall(SYS_fallocate, fd, mode, offset, length);
    unlock();
    return result;
}
int posix_fallocate(int fd, off_t offset, off_t length) { return fallocate(fd, 0, offset, length) ? errno : 0; }
ALIAS(ftruncate64, ftruncate);
ALIAS(truncate64, truncate);
ALIAS(fallocate64, fallocate);
ALIAS(posix_fallocate64, posix_fallocate);

void *mmap(void *address, size_t size, int access, int flags, int fd, off_t offset) {
    if (access & PROT_WRITE && !(flags & MAP_ANONYMOUS) && (flags & MAP_TYPE) != MAP_PRIVATE)
        refuse(fd, "a shared mapping for writing");
    return (void *)syscall(SYS_mmap, address, size, access, flags, fd, offset);
}
ssize_t sendfile(int out, int in, off_t *offset, size_t size) {
    refuse(out, "sendfile");
    return syscall(SYS_sendfile, out, in, offset, size);
}
ssize_t copy_file_range(int in, off_t *from, int out, off_t *to, size_t size, unsigned flags) {
    refuse(out, "copy_file_range");
    return syscall(SYS_copy_file_range, in, from, out, to, size, flags);
}
ssize_t splice(int in, off_t *from, int out, off_t *to, size_t size, unsigned flags) {
    refuse(out, "splice");
    return syscall(SYS_splice, in, from, out, to, size, flags);
}
ALIAS(mmap64, mmap);
ALIAS(sendfile64, sendfile);

/* --- syncing ---------------------------------------------------------------------------------- */
static int do_sync(long call, int fd) {
    struct stat st;
    char path[PATH_MAX];
    struct file *file = enter(fd, &st);
    bool directory = !file && active && !fstat(fd, &st) && S_ISDIR(st.st_mode) && fd_inside(fd, path);
    if (!file && !directory) return (int)syscall(call, fd);
    if (directory) lock();
    uint64_t seq = next_seq(); /* what is written from here on may be too late for this fsync */
    unlock();
    if (!skip_fsync && syscall(call, fd)) return -1;
    lock();
    struct record record = {.kind = DIR_SYNCED, .seq = seq, .payload = directory ? strlen(path) + 1 : 0};
    if (file) synced(file, seq);
    else append(record, path);
    unlock();
    return 0;
}
int fsync(int fd) { return do_sync(SYS_fsync, fd); }
int fdatasync(int fd) { return do_sync(SYS_fdatasync, fd); }

/* --- names ------------------------------------------------------------------------------------ */
/* A second name for what `path` names, in POWERCUT_UNDO; "" where nothing is there. */
static void bury(const char *path, struct stat *st, char grave[PATH_MAX]) {
    *grave = 0;
    if (lstat(path, st) || S_ISDIR(st->st_mode)) return;
    if (!format(grave, "%s/grave.%d.%llu", undo, getpid(), (unsigned long long)next_seq())) die("path too long", undo);
    if (syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, grave, 0)) die("no second name (another file system?)", grave);
}

int unlinkat(int dirfd, const char *path, int flags) {
    char full[PATH_MAX], grave[PATH_MAX];
    struct stat st;
    if (!locate(dirfd, path, false, full)) return (int)syscall(SYS_unlinkat, dirfd, path, flags);
    lock();
    bool directory = flags & AT_REMOVEDIR;
    if (directory && !lstat(full, &st)) name(RMDIR, &st, full, "", "");
    if (!directory) bury(full, &st, grave);
    if (!directory && *grave) name(UNLINK, &st, full, "", grave);
    int result = (int)syscall(SYS_unlinkat, dirfd, path, flags);
    unlock();
    return result;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    char old[PATH_MAX], new[PATH_MAX], grave[PATH_MAX];
    struct stat st, target;
    bool source = locate(from_fd, from, false, old), sink = locate(to_fd, to, false, new);
    if (!source && !sink) return (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
    if (source != sink) die("a rename into or out of the watched directory", source ? old : new);
    lock();
    bool there = !lstat(old, &st);
    if (there && S_ISDIR(st.st_mode)) die("a rename of a directory", old);
    if (flags & ~1u) die("a rename with flags", old);
    bury(new, &target, grave);
    if (there && !(*grave && target.st_ino == st.st_ino)) name(RENAME, &st, old, new, grave);
    int result = (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
    unlock();
    return result;
}
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_fd, const char *from, int to_fd, const char *to) {
    return renameat2(from_fd, from, to_fd, to, 0);
}

/* A call that makes a name: logged after the fact. Killed in between, the name is one that survives. */
static int make(uint64_t kind, int dirfd, const char *path, long call, long a, long b, long c, long d, long e) {
    char full[PATH_MAX];
    struct stat st;
    if (!locate(dirfd, path, false, full)) return (int)syscall(call, a, b, c, d, e);
    lock();
    int result = (int)syscall(call, a, b, c, d, e);
    if (!result && !lstat(full, &st)) name(kind, &st, full, "", "");
    unlock();
    return result;
}
int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    return make(LINK, to_fd, to, SYS_linkat, from_fd, (long)from, to_fd, (long)to, flags);
}
int symlinkat(const char *target, int dirfd, const char *path) {
    return make(LINK, dirfd, path, SYS_symlinkat, (long)target, dirfd, (long)path, 0, 0);
}
int mkdirat(int dirfd, const char *path, mode_t mode) {
    return make(MKDIR, dirfd, path, SYS_mkdirat, dirfd, (long)path, mode, 0, 0);
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }
int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
