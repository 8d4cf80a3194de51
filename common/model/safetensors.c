#include "common/model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/model/tensor_names.h"

enum { HEADER_MAX = 512 << 20, INDEX_MAX = 512 << 20 };

static const struct {
    const char *name;
    unsigned bytes;
} dtypes[DTYPE_N] = {
    [DTYPE_BF16] = {"BF16", 2},       [DTYPE_F32] = {"F32", 4}, [DTYPE_F8_E4M3] = {"F8_E4M3", 1},
    [DTYPE_F8_E8M0] = {"F8_E8M0", 1}, [DTYPE_I8] = {"I8", 1},   [DTYPE_I64] = {"I64", 8},
    [DTYPE_I32] = {"I32", 4},         [DTYPE_F16] = {"F16", 2}, [DTYPE_F64] = {"F64", 8},
    [DTYPE_U8] = {"U8", 1},
};

/* One mapped file. */
struct shard {
    char *name;
    uint8_t *map;
    size_t size;
};

struct safetensors {
    struct shard *shards;
    size_t n_shards, cap_shards;
    struct tensor *tensors; /* sorted by name once all are read */
    size_t n_tensors, cap_tensors;
};

const char *dtype_name(enum st_dtype t)
{
    return (unsigned)t < DTYPE_N ? dtypes[t].name : "?";
}

/* ---- reading one tensor's description ---- */

static enum status_code read_dtype(const struct json *v, enum st_dtype *out, struct status *st)
{
    for (int i = 0; i < DTYPE_N; i++)
        if (json_is(v, dtypes[i].name)) {
            *out = (enum st_dtype)i;
            return status_ok(st);
        }
    return status_set(st, ST_CORRUPT, "dtype '%s' is not known",
                      v != NULL && v->type == JSON_STRING ? v->text : "(none)");
}

/* Also computes the size, refusing shapes whose size would not fit. */
static enum status_code read_shape(const struct json *v, struct tensor *t, uint64_t *bytes,
                                   struct status *st)
{
    *bytes = dtypes[t->dtype].bytes;
    if (v == NULL || v->type != JSON_ARRAY || v->len > TENSOR_DIMS_MAX)
        return status_set(st, ST_CORRUPT, "shape is not a list of at most %d sizes",
                          TENSOR_DIMS_MAX);
    t->n_dims = (int)v->len;
    for (uint32_t i = 0; i < v->len; i++) {
        if (!json_int(&v->items[i], &t->shape[i]) || t->shape[i] < 0)
            return status_set(st, ST_CORRUPT, "shape[%u] is not a size", i);
        if (__builtin_mul_overflow(*bytes, (uint64_t)t->shape[i], bytes))
            return status_set(st, ST_CORRUPT, "a shape of more than 2^64 bytes");
    }
    return status_ok(st);
}

static enum status_code read_tensor(const struct json *v, const struct shard *shard,
                                    uint64_t header, struct tensor *t, struct status *st)
{
    const struct json *range = json_get(v, "data_offsets");
    uint64_t data_bytes = shard->size - header, bytes;
    int64_t begin, end;

    if (v->type != JSON_OBJECT)
        return status_set(st, ST_CORRUPT, "not described by an object");
    if (read_dtype(json_get(v, "dtype"), &t->dtype, st) != ST_OK ||
        read_shape(json_get(v, "shape"), t, &bytes, st) != ST_OK)
        return st->code;
    if (range == NULL || range->type != JSON_ARRAY || range->len != 2 ||
        !json_int(&range->items[0], &begin) || !json_int(&range->items[1], &end) || begin < 0 ||
        end < begin)
        return status_set(st, ST_CORRUPT, "data_offsets is not [begin, end]");
    if ((uint64_t)end > data_bytes)
        return status_set(st, ST_CORRUPT,
                          "data_offsets end at %" PRId64 ", the file has %" PRIu64
                          " bytes of data: truncated, or a bad header",
                          end, data_bytes);
    if ((uint64_t)(end - begin) != bytes)
        return status_set(st, ST_CORRUPT,
                          "data_offsets span %" PRId64 " bytes, dtype and shape make %" PRIu64,
                          end - begin, bytes);
    t->data = shard->map + header + begin;
    t->bytes = bytes;
    return status_ok(st);
}

/* ---- reading a shard ---- */

static void *grow(void *array, size_t n, size_t *cap, size_t size)
{
    if (n < *cap)
        return array;
    *cap = *cap == 0 ? 64 : 2 * *cap;
    array = realloc(array, *cap * size);
    if (array == NULL)
        abort(); /* a table of names: nothing was served yet */
    return array;
}

static int by_address(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;

    return x->data < y->data ? -1 : x->data > y->data;
}

static enum status_code check_overlaps(struct tensor *t, size_t n, struct status *st)
{
    qsort(t, n, sizeof(*t), by_address);
    for (size_t i = 1; i < n; i++)
        if (t[i - 1].data + t[i - 1].bytes > t[i].data && t[i].bytes > 0)
            return status_set(st, ST_CORRUPT, "tensors %s and %s overlap", t[i - 1].name,
                              t[i].name);
    return status_ok(st);
}

static enum status_code read_header(struct safetensors *s, const struct shard *shard,
                                    const struct json *root, uint64_t header, struct status *st)
{
    size_t first = s->n_tensors;

    if (root->type != JSON_OBJECT)
        return status_set(st, ST_CORRUPT, "the header is not a JSON object");
    for (uint32_t i = 0; i < root->len; i++) {
        const struct json_member *m = &root->members[i];
        struct tensor *t;

        if (strcmp(m->key, "__metadata__") == 0)
            continue;
        s->tensors = grow(s->tensors, s->n_tensors, &s->cap_tensors, sizeof(*s->tensors));
        t = &s->tensors[s->n_tensors];
        *t = (struct tensor){.file = shard->name};
        if (read_tensor(&m->value, shard, header, t, st) != ST_OK)
            return status_wrap(st, "tensor %s", m->key);
        t->name = tensor_name_canonical(m->key);
        s->n_tensors++;
    }
    return check_overlaps(s->tensors + first, s->n_tensors - first, st);
}

static enum status_code map_shard(const char *path, struct shard *shard, struct status *st)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat info;

    if (fd < 0)
        return status_set(st, ST_INVALID, "cannot open: %s", strerror(errno));
    if (fstat(fd, &info) != 0 || info.st_size < 8) {
        close(fd);
        return status_set(st, ST_CORRUPT, "%lld bytes are no safetensors file",
                          (long long)info.st_size);
    }
    shard->size = (size_t)info.st_size;
    shard->map = mmap(NULL, shard->size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (shard->map == MAP_FAILED) {
        shard->map = NULL;
        return status_set(st, ST_EXHAUSTED, "cannot map %zu bytes: %s", shard->size,
                          strerror(errno));
    }
    return status_ok(st);
}

static enum status_code read_shard(struct safetensors *s, const char *path, const char *name,
                                   struct status *st)
{
    struct shard *shard;
    struct json_doc *doc = NULL;
    uint64_t n = 0;

    s->shards = grow(s->shards, s->n_shards, &s->cap_shards, sizeof(*s->shards));
    shard = &s->shards[s->n_shards];
    *shard = (struct shard){.name = strdup(name)};
    if (shard->name == NULL)
        abort();
    s->n_shards++;
    if (map_shard(path, shard, st) != ST_OK)
        return status_wrap(st, "%s", path);
    for (int i = 7; i >= 0; i--)
        n = n << 8 | shard->map[i];
    if (n > shard->size - 8 || n > HEADER_MAX)
        return status_set(st, ST_CORRUPT,
                          "%s: the header claims %" PRIu64 " bytes, the file has %zu in all", path,
                          n, shard->size);
    if (json_parse((const char *)shard->map + 8, n, 0, &doc, st) == ST_OK)
        read_header(s, shard, json_root(doc), 8 + n, st);
    else
        st->code = ST_CORRUPT;
    if (doc != NULL)
        json_free(doc);
    return st->code == ST_OK ? ST_OK : status_wrap(st, "%s", path);
}

/* ---- opening ---- */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

static enum status_code sort_names(struct safetensors *s, struct status *st)
{
    if (s->n_tensors > 0)
        qsort(s->tensors, s->n_tensors, sizeof(*s->tensors), by_name);
    for (size_t i = 1; i < s->n_tensors; i++)
        if (by_name(&s->tensors[i - 1], &s->tensors[i]) == 0)
            return status_set(st, ST_CORRUPT, "tensor %s is in %s and in %s", s->tensors[i].name,
                              s->tensors[i - 1].file, s->tensors[i].file);
    return status_ok(st);
}

static bool has_shard(const struct safetensors *s, const char *name)
{
    for (size_t i = 0; i < s->n_shards; i++)
        if (strcmp(s->shards[i].name, name) == 0)
            return true;
    return false;
}

/* Every tensor of the index is in the shard that it names, and the other way round. */
static enum status_code check_index(const struct safetensors *s, const struct json *map,
                                    struct status *st)
{
    for (uint32_t i = 0; i < map->len; i++) {
        char *name = tensor_name_canonical(map->members[i].key);
        const struct tensor *t = safetensors_find(s, name);

        free(name);
        if (t == NULL || strcmp(t->file, map->members[i].value.text) != 0)
            return status_set(st, ST_CORRUPT, "tensor %s is not in %s, where the index has it",
                              map->members[i].key, map->members[i].value.text);
    }
    if (map->len != s->n_tensors)
        return status_set(st, ST_CORRUPT, "the shards hold %zu tensors, the index names %u",
                          s->n_tensors, map->len);
    return status_ok(st);
}

static enum status_code read_indexed(struct safetensors *s, const char *dir, const struct json *map,
                                     struct status *st)
{
    char path[4096];

    if (map == NULL || map->type != JSON_OBJECT)
        return status_set(st, ST_CORRUPT, "model.safetensors.index.json: no weight_map");
    for (uint32_t i = 0; i < map->len; i++) {
        const struct json *file = &map->members[i].value;

        if (file->type != JSON_STRING || strchr(file->text, '/') != NULL)
            return status_set(st, ST_CORRUPT,
                              "model.safetensors.index.json: tensor %s is in no file",
                              map->members[i].key);
        if (has_shard(s, file->text))
            continue;
        snprintf(path, sizeof(path), "%s/%s", dir, file->text);
        if (read_shard(s, path, file->text, st) != ST_OK)
            return st->code;
    }
    if (sort_names(s, st) != ST_OK)
        return st->code;
    return check_index(s, map, st);
}

enum status_code safetensors_open(const char *dir, struct safetensors **out, struct status *st)
{
    struct safetensors *s = calloc(1, sizeof(*s));
    struct buf text = {0};
    struct json_doc *doc = NULL;
    char path[4096];

    if (s == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory");
    snprintf(path, sizeof(path), "%s/model.safetensors.index.json", dir);
    if (access(path, F_OK) != 0) {
        snprintf(path, sizeof(path), "%s/model.safetensors", dir);
        if (access(path, F_OK) != 0)
            status_set(st, ST_INVALID,
                       "%s holds neither model.safetensors.index.json nor model.safetensors", dir);
        else if (read_shard(s, path, "model.safetensors", st) == ST_OK)
            sort_names(s, st);
    } else if (file_read(path, INDEX_MAX, &text, st) != ST_OK ||
               json_parse(text.data, text.len, 0, &doc, st) != ST_OK) {
        status_wrap(st, "%s", path);
    } else {
        read_indexed(s, dir, json_get(json_root(doc), "weight_map"), st);
    }
    if (doc != NULL)
        json_free(doc);
    buf_deinit(&text);
    if (st->code != ST_OK)
        safetensors_close(s);
    else
        *out = s;
    return st->code;
}

enum status_code safetensors_open_file(const char *path, struct safetensors **out,
                                       struct status *st)
{
    struct safetensors *s = calloc(1, sizeof(*s));

    if (s == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory");
    if (read_shard(s, path, path, st) != ST_OK || sort_names(s, st) != ST_OK)
        safetensors_close(s);
    else
        *out = s;
    return st->code;
}

void safetensors_close(struct safetensors *s)
{
    if (s == NULL)
        return;
    for (size_t i = 0; i < s->n_tensors; i++)
        free((char *)s->tensors[i].name);
    for (size_t i = 0; i < s->n_shards; i++) {
        if (s->shards[i].map != NULL)
            munmap(s->shards[i].map, s->shards[i].size);
        free(s->shards[i].name);
    }
    free(s->tensors);
    free(s->shards);
    free(s);
}

const struct tensor *safetensors_all(const struct safetensors *s, size_t *n)
{
    *n = s->n_tensors;
    return s->tensors;
}

const struct tensor *safetensors_find(const struct safetensors *s, const char *name)
{
    struct tensor key = {.name = name};

    if (s->n_tensors == 0)
        return NULL;
    return bsearch(&key, s->tensors, s->n_tensors, sizeof(*s->tensors), by_name);
}

/* ---- writing ---- */

static uint64_t bytes_of(const struct tensor_out *t)
{
    uint64_t n = dtypes[t->dtype].bytes;

    for (int i = 0; i < t->n_dims; i++)
        n *= (uint64_t)t->shape[i];
    return n;
}

static void write_header(struct buf *h, struct tensor_out *tensors, size_t n)
{
    uint64_t at = 0;

    buf_puts(h, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < n; i++) {
        buf_puts(h, ",");
        json_write_string(h, tensors[i].name, strlen(tensors[i].name));
        buf_printf(h, ":{\"dtype\":\"%s\",\"shape\":[", dtype_name(tensors[i].dtype));
        for (int d = 0; d < tensors[i].n_dims; d++)
            buf_printf(h, "%s%" PRId64, d > 0 ? "," : "", tensors[i].shape[d]);
        buf_printf(h, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at,
                   at + bytes_of(&tensors[i]));
        tensors[i].offset = at;
        at += bytes_of(&tensors[i]);
    }
    buf_puts(h, "}");
    while (h->len % 8 != 0)
        buf_puts(h, " ");
}

enum status_code safetensors_write(const char *path, struct tensor_out *tensors, size_t n,
                                   struct status *st)
{
    struct buf h = {0};
    FILE *f = fopen(path, "wb");
    uint64_t len, end = 0;
    bool ok;

    if (f == NULL)
        return status_set(st, ST_INVALID, "%s: %s", path, strerror(errno));
    write_header(&h, tensors, n);
    len = h.len;
    ok = fwrite(&len, 8, 1, f) == 1 && fwrite(h.data, 1, h.len, f) == h.len;
    for (size_t i = 0; i < n; i++) {
        uint64_t bytes = bytes_of(&tensors[i]);

        tensors[i].offset += 8 + len;
        end = tensors[i].offset + bytes;
        if (tensors[i].data != NULL && bytes > 0)
            ok = ok && fseeko(f, (off_t)tensors[i].offset, SEEK_SET) == 0 &&
                 fwrite(tensors[i].data, 1, bytes, f) == bytes;
    }
    ok = fflush(f) == 0 && ok && (end == 0 || ftruncate(fileno(f), (off_t)end) == 0);
    if (!ok)
        status_set(st, ST_INVALID, "%s: cannot write: %s", path, strerror(errno));
    else
        status_ok(st);
    fclose(f);
    buf_deinit(&h);
    return st->code;
}
