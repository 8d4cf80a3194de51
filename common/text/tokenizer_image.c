#include "common/text/tokenizer_image.h"

#include "common/base/crc32c.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ALIGN = 64, ENDIAN_MARK = 0x01020304 };

struct header {
    char magic[8];
    uint32_t version, endian;
    uint64_t source_bytes;
    uint32_t source_crc, crc;
    struct {
        uint64_t offset, bytes;
    } sections[IMAGE_N_SECTIONS];
};

static const char magic[8] = {'B', 'A', 'T', 'O', 'N', 'T', 'O', 'K'};
static const size_t crc_from = offsetof(struct header, sections);

void image_deinit(struct image *image)
{
    if (image->mapping != NULL)
        munmap(image->mapping, image->mapping_bytes);
    else
        for (int i = 0; i < IMAGE_N_SECTIONS; i++)
            free(image->sections[i].data);
    *image = (struct image){0};
}

static enum status_code check_header(const struct header *h, size_t n, const void *source,
                                     size_t source_bytes, struct status *st)
{
    if (n < sizeof(*h) || memcmp(h->magic, magic, sizeof(magic)) != 0)
        return status_set(st, ST_CORRUPT, "no tokenizer cache: %zu bytes", n);
    if (h->version != IMAGE_VERSION || h->endian != ENDIAN_MARK)
        return status_set(st, ST_UNAVAILABLE, "written by version %u, this is %d", h->version,
                          IMAGE_VERSION);
    if (h->source_bytes != source_bytes || h->source_crc != crc32c(0, source, source_bytes))
        return status_set(st, ST_UNAVAILABLE, "made of another tokenizer.json");
    if (h->crc != crc32c(0, (const char *)h + crc_from, n - crc_from))
        return status_set(st, ST_CORRUPT, "its checksum does not hold");
    for (int i = 0; i < IMAGE_N_SECTIONS; i++)
        if (h->sections[i].offset % ALIGN != 0 || h->sections[i].offset > n ||
            h->sections[i].bytes > n - h->sections[i].offset)
            return status_set(st, ST_CORRUPT, "section %d is outside the file", i);
    return status_ok(st);
}

enum status_code image_load(const char *cache_path, const void *source, size_t source_bytes,
                            struct image *out, struct status *st)
{
    int fd = open(cache_path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    char *map = MAP_FAILED;

    if (fd < 0)
        return status_set(st, ST_UNAVAILABLE, "%s: %s", cache_path, strerror(errno));
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0)
        map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return status_set(st, ST_UNAVAILABLE, "%s: cannot be mapped", cache_path);
    if (check_header((const struct header *)map, (size_t)info.st_size, source, source_bytes, st) !=
        ST_OK) {
        munmap(map, (size_t)info.st_size);
        status_wrap(st, "%s", cache_path);
        return st->code;
    }
    *out = (struct image){.mapping = map, .mapping_bytes = (size_t)info.st_size};
    for (int i = 0; i < IMAGE_N_SECTIONS; i++) {
        out->sections[i].data = map + ((const struct header *)map)->sections[i].offset;
        out->sections[i].bytes = ((const struct header *)map)->sections[i].bytes;
    }
    return status_ok(st);
}

static bool write_all(int fd, const void *data, size_t n)
{
    const char *p = data;

    while (n > 0) {
        ssize_t k = write(fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return false;
        p += k;
        n -= (size_t)k;
    }
    return true;
}

/* The bytes between a section's end and the next multiple of 64. */
static size_t gap(uint64_t bytes)
{
    return (size_t)(-bytes % ALIGN);
}

static void fill_header(struct header *h, const void *source, size_t source_bytes,
                        const struct image *image)
{
    static const char zeros[ALIGN];
    uint64_t at = sizeof(*h) + gap(sizeof(*h));

    *h = (struct header){.version = IMAGE_VERSION,
                         .endian = ENDIAN_MARK,
                         .source_bytes = source_bytes,
                         .source_crc = crc32c(0, source, source_bytes)};
    memcpy(h->magic, magic, sizeof(magic));
    for (int i = 0; i < IMAGE_N_SECTIONS; i++) {
        h->sections[i].offset = at;
        h->sections[i].bytes = image->sections[i].bytes;
        at += image->sections[i].bytes + gap(image->sections[i].bytes);
    }
    h->crc = crc32c(0, h->sections, sizeof(h->sections));
    h->crc = crc32c(h->crc, zeros, gap(sizeof(*h)));
    for (int i = 0; i < IMAGE_N_SECTIONS; i++) {
        h->crc = crc32c(h->crc, image->sections[i].data, image->sections[i].bytes);
        h->crc = crc32c(h->crc, zeros, gap(image->sections[i].bytes));
    }
}

static bool write_image(int fd, const struct header *h, const struct image *image)
{
    static const char zeros[ALIGN];
    bool ok = write_all(fd, h, sizeof(*h)) && write_all(fd, zeros, gap(sizeof(*h)));

    for (int i = 0; ok && i < IMAGE_N_SECTIONS; i++)
        ok = write_all(fd, image->sections[i].data, image->sections[i].bytes) &&
             write_all(fd, zeros, gap(image->sections[i].bytes));
    return ok;
}

/* A directory that nobody may write is meant to stay as it is, although root could. */
static bool is_read_only(const char *path)
{
    char dir[4096];
    const char *slash = strrchr(path, '/');
    size_t n = slash == NULL ? 0 : (size_t)(slash - path);
    struct stat info;

    if (n >= sizeof(dir))
        return true;
    memcpy(dir, path, n);
    dir[n] = '\0';
    if (stat(slash == NULL ? "." : n == 0 ? "/" : dir, &info) != 0)
        return true;
    return (info.st_mode & (S_IWUSR | S_IWGRP | S_IWOTH)) == 0;
}

enum status_code image_store(const char *cache_path, const void *source, size_t source_bytes,
                             mode_t mode, const struct image *image, struct status *st)
{
    char name[4096];
    struct header h;
    int fd, error = 0;

    if (snprintf(name, sizeof(name), "%s.XXXXXX", cache_path) >= (int)sizeof(name))
        return status_set(st, ST_UNAVAILABLE, "%.200s...: the path is too long", cache_path);
    if (is_read_only(cache_path))
        return status_set(st, ST_UNAVAILABLE, "%s: the directory is read-only", cache_path);
    fd = mkostemp(name, O_CLOEXEC);
    if (fd < 0)
        return status_set(st, ST_UNAVAILABLE, "%s: %s", cache_path, strerror(errno));
    fill_header(&h, source, source_bytes, image);
    if (!write_image(fd, &h, image) || fchmod(fd, (mode & 0644) | 0600) != 0)
        error = errno;
    if (close(fd) != 0 && error == 0)
        error = errno;
    if (error == 0 && rename(name, cache_path) != 0)
        error = errno;
    if (error == 0)
        return status_ok(st);
    unlink(name);
    return status_set(st, ST_UNAVAILABLE, "%s: %s", cache_path, strerror(error));
}
