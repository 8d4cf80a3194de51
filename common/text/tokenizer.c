#include "common/text/tokenizer_impl.h"

#include "common/text/tokenizer_json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* The file's contents, mapped; the path of the file goes to file_path. */
static enum status_code map_file(const char *path, char *file_path, size_t n, void **text,
                                 size_t *len, mode_t *mode, struct status *st)
{
    struct stat info;
    int fd;

    if (stat(path, &info) != 0)
        return status_set(st, ST_INVALID, "%s: %s", path, strerror(errno));
    if (snprintf(file_path, n, S_ISDIR(info.st_mode) ? "%s/tokenizer.json" : "%s", path) >= (int)n)
        return status_set(st, ST_INVALID, "%.200s...: the path is too long", path);
    fd = open(file_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return status_set(st, ST_INVALID, "%s: %s", file_path, strerror(errno));
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size == 0) {
        close(fd);
        return status_set(st, ST_INVALID, "%s: no file, or an empty one", file_path);
    }
    *text = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    close(fd);
    if (*text == MAP_FAILED)
        return status_set(st, ST_EXHAUSTED, "%s: cannot be mapped: %s", file_path, strerror(errno));
    *len = (size_t)info.st_size;
    *mode = info.st_mode;
    return status_ok(st);
}

/* The tables: from the cache file when it fits, else from the text. */
static enum status_code fill(struct tokenizer *t, const char *cache_path, const char *text,
                             size_t len, mode_t mode, struct status *st)
{
    struct status ignored;

    if (image_load(cache_path, text, len, &t->image, &ignored) == ST_OK) {
        if (tokenizer_bind(t, &ignored) == ST_OK)
            return status_ok(st);
        image_deinit(&t->image);
        *t = (struct tokenizer){0};
    }
    if (tokenizer_json_read(text, len, &t->image, st) != ST_OK || tokenizer_bind(t, st) != ST_OK)
        return st->code;
    image_store(cache_path, text, len, mode, &t->image, &ignored);
    return st->code;
}

enum status_code tokenizer_open(const char *path, struct tokenizer **out, struct status *st)
{
    char file_path[4096], cache_path[4096 + 8];
    struct tokenizer *t;
    void *text = NULL;
    size_t len = 0;
    mode_t mode = 0;

    if (map_file(path, file_path, sizeof(file_path), &text, &len, &mode, st) != ST_OK)
        return st->code;
    snprintf(cache_path, sizeof(cache_path), "%s.baton", file_path);
    t = calloc(1, sizeof(*t));
    if (t == NULL) {
        status_set(st, ST_EXHAUSTED, "no memory for a tokenizer");
    } else if (fill(t, cache_path, text, len, mode, st) == ST_OK) {
        *out = t;
        t = NULL;
    } else {
        status_wrap(st, "%s", file_path);
    }
    tokenizer_free(t);
    munmap(text, len);
    return st->code;
}

void tokenizer_free(struct tokenizer *t)
{
    if (t == NULL)
        return;
    image_deinit(&t->image);
    free(t);
}

int32_t tokenizer_vocab(const struct tokenizer *t)
{
    return (int32_t)t->meta->n_tokens;
}

size_t tokenizer_memory(const struct tokenizer *t)
{
    size_t n = sizeof(*t);

    for (int i = 0; i < IMAGE_N_SECTIONS; i++)
        n += t->image.sections[i].bytes;
    return n;
}

int32_t tokenizer_added_id(const struct tokenizer *t, const char *text, size_t len)
{
    for (int i = 0; i < 2; i++) {
        size_t found = 0;
        uint32_t id = trie_longest(&t->passes[i].trie, (const uint8_t *)text, len, &found);
        if (id != TRIE_NONE && found == len)
            return (int32_t)id;
    }
    return -1;
}

const char *tokenizer_bytes(const struct tokenizer *t, int32_t id, size_t *len, bool *is_added)
{
    const struct bpe *b = &t->bpe;

    if (id < 0 || (uint32_t)id >= b->n_tokens)
        return NULL;
    *len = b->offsets[id + 1] - b->offsets[id];
    if (is_added != NULL)
        *is_added = t->flags[id] & TOKEN_ADDED;
    return (const char *)b->bytes + b->offsets[id];
}
