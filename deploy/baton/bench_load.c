#include "deploy/baton/bench_load.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/pool.h"

enum { PIECE = 4 << 20 };

static double seconds_since(uint64_t start)
{
    return (double)(clock_now_ns() - start) * 1e-9;
}

/* What is done to each shard. */
typedef bool (*shard_fn)(int fd, size_t bytes, uint8_t *memory);

static bool forget(int fd, size_t bytes, uint8_t *memory)
{
    (void)bytes;
    (void)memory;
    return posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0;
}

static bool read_all(int fd, size_t bytes, uint8_t *memory)
{
    for (size_t at = 0; at < bytes;) {
        ssize_t n = read(fd, memory + at, bytes - at < PIECE ? bytes - at : PIECE);

        if (n <= 0)
            return false;
        at += (size_t)n;
    }
    return true;
}

static bool count(int fd, size_t bytes, uint8_t *memory)
{
    (void)fd;
    (void)bytes;
    (void)memory;
    return true;
}

/* Does it to all of them, one after the other in memory; adds up their bytes. */
static bool each_shard(const char *dir, shard_fn act, uint8_t *memory, size_t *total)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    bool ok = d != NULL;

    *total = 0;
    while (ok && (e = readdir(d)) != NULL) {
        const char *end = strrchr(e->d_name, '.');
        struct stat info;

        if (end == NULL || strcmp(end, ".safetensors") != 0)
            continue;
        int fd = openat(dirfd(d), e->d_name, O_RDONLY | O_CLOEXEC);

        ok = fd >= 0 && fstat(fd, &info) == 0 &&
             act(fd, (size_t)info.st_size, memory != NULL ? memory + *total : NULL);
        if (ok)
            *total += (size_t)info.st_size;
        if (fd >= 0)
            close(fd);
    }
    if (d != NULL)
        closedir(d);
    return ok;
}

/* Seconds to read all shards into fresh memory, in huge pages where there are any; < 0: failed. */
static double read_files(const char *dir, size_t bytes)
{
    uint64_t start = clock_now_ns();
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t total;
    double seconds = -1;

    if (memory == MAP_FAILED)
        return -1;
    madvise(memory, bytes, MADV_HUGEPAGE);
    if (each_shard(dir, read_all, memory, &total))
        seconds = seconds_since(start);
    munmap(memory, bytes);
    return seconds;
}

static double open_once(const struct model_options *o, struct status *st)
{
    struct model *m = NULL;
    uint64_t start = clock_now_ns();
    double seconds;

    model_open(o, &m, st);
    seconds = seconds_since(start);
    model_free(m);
    return seconds;
}

static enum status_code load_case(const struct model_options *o, bool cold, size_t bytes,
                                  struct bench_table *table, struct status *st)
{
    struct bench_row row = {.name = "load", .unit = "GB/s", .threads = o->n_threads};
    size_t total;
    double read, load;

    snprintf(row.shape, sizeof(row.shape), "%.1f GB with repack, files %s", (double)bytes * 1e-9,
             cold ? "cold" : "in the page cache");
    /* Loading goes first: below us there may be another cache, which then helps the other. */
    if (cold)
        each_shard(o->path, forget, NULL, &total);
    load = open_once(o, st);
    if (cold)
        each_shard(o->path, forget, NULL, &total);
    read = read_files(o->path, bytes);
    if (st->code == ST_OK && read < 0)
        status_set(st, ST_EXHAUSTED, "cannot read %.1f GB into memory", (double)bytes * 1e-9);
    if (st->code != ST_OK)
        return st->code;
    row.value = (double)bytes / load * 1e-9;
    row.limit = (double)bytes / read * 1e-9;
    row.fraction = row.value / row.limit;
    bench_table_add(table, &row);
    return st->code;
}

enum status_code bench_load(const struct model_options *o, struct bench_table *table,
                            struct status *st)
{
    struct model_options options = *o;
    size_t bytes, total;

    if (options.n_threads == 0)
        options.n_threads = pool_usable_cpus();
    if (!each_shard(o->path, count, NULL, &bytes))
        return status_set(st, ST_INVALID, "no shards can be read in %s", o->path);
    if (load_case(&options, true, bytes, table, st) != ST_OK ||
        load_case(&options, false, bytes, table, st) != ST_OK)
        return st->code;
    options.no_repack = true;
    for (int cold = 1; cold >= 0 && st->code == ST_OK; cold--) {
        if (cold)
            each_shard(o->path, forget, NULL, &total);
        fprintf(stderr, "baton bench-engine: opened without repack in %.2f s, files %s\n",
                open_once(&options, st), cold ? "cold" : "in the page cache");
    }
    return st->code;
}
