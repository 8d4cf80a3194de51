/*
 * Golden vectors of the oracle, layer by layer: the golden streams before layer I go in, the
 * streams after it must come out; then the state that a whole prompt leaves behind.
 *
 * usage: test_golden_layers CHECKPOINT VECTORS_DIR LEVEL
 * Level ref: every bit. Other levels: the limits of vectors/INDEX.json (`layers`, `state`).
 */
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/model/model_debug.h"
#include "common/model/safetensors.h"
#include "kernels/ref/formats.h"

static const char *checkpoint, *vectors, *level;

struct golden {
    struct safetensors *layers, *state;
    struct model *m;
    struct kv_memory kv;
    const struct tensor *tokens, *streams;
    int n, hc, d;
    uint32_t pages[64];
};

static struct golden g;

static bool is_ref(void)
{
    return strcmp(level, "ref") == 0;
}

static struct safetensors *open_vectors(const char *name)
{
    struct safetensors *s = NULL;
    struct status st;
    char path[4096];

    snprintf(path, sizeof(path), "%s/%s.safetensors", vectors, name);
    if (safetensors_open_file(path, &s, &st) != ST_OK)
        fail_msg("%s", st.msg);
    return s;
}

static int setup(void **state)
{
    struct model_options opt = {.path = checkpoint,
                                .device = "cpu",
                                .cpu_isa = level,
                                .max_batch_tokens = 512,
                                .max_batch_seqs = 1,
                                .max_context = 1024,
                                .max_logit_rows = 4};
    struct status st;

    (void)state;
    g.layers = open_vectors("layers");
    g.state = open_vectors("state");
    g.tokens = safetensors_find(g.layers, "tokens");
    g.streams = safetensors_find(g.layers, "streams");
    g.n = (int)g.tokens->shape[0];
    g.hc = (int)g.streams->shape[2];
    g.d = (int)g.streams->shape[3];
    for (uint32_t i = 0; i < 64; i++)
        g.pages[i] = 3 - i % 4 + i / 4 * 4; /* not in order: the block table must be used */
    if (model_open(&opt, &g.m, &st) != ST_OK || model_kv_alloc(g.m, 64, 3, &g.kv, &st) != ST_OK)
        fail_msg("%s", st.msg);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    model_kv_free(g.m, &g.kv);
    model_free(g.m);
    safetensors_close(g.layers);
    safetensors_close(g.state);
    return 0;
}

static struct model_span whole(int start, int n, enum model_logits logits)
{
    return (struct model_span){.tokens = (const int32_t *)g.tokens->data + start,
                               .n_tokens = n,
                               .start = start,
                               .slot = 1,
                               .pages = g.pages,
                               .logits = logits};
}

/* ---- layers ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* Per token: RMS of the difference over RMS of what the layer adds. */
static double token_error(const uint16_t *got, const uint16_t *want, const uint16_t *before,
                          size_t n)
{
    double diff = 0, added = 0;

    for (size_t i = 0; i < n; i++) {
        double w = (double)bf16_decode(want[i]), e = (double)bf16_decode(got[i]) - w;
        double a = w - (double)bf16_decode(before[i]);

        diff += e * e;
        added += a * a;
    }
    return sqrt(diff / added);
}

static void check_layer(int layer, const uint16_t *got)
{
    size_t row = (size_t)(g.hc * g.d), all = (size_t)g.n * row;
    const uint16_t *before = (const uint16_t *)g.streams->data + (size_t)layer * all;
    const uint16_t *want = before + all;
    double error[4096];
    int equal = 0;

    for (int t = 0; t < g.n; t++) {
        size_t at = (size_t)t * row;

        equal += memcmp(got + at, want + at, row * 2) == 0;
        error[t] = token_error(got + at, want + at, before + at, row);
    }
    print_message("layer %d: %d of %d tokens equal in every bit\n", layer, equal, g.n);
    if (is_ref())
        for (size_t i = 0; i < all; i++)
            if (got[i] != want[i])
                fail_msg("layer %d token %zu stream %zu dim %zu: %g, golden %g", layer, i / row,
                         i % row / (size_t)g.d, i % (size_t)g.d, (double)bf16_decode(got[i]),
                         (double)bf16_decode(want[i]));
    qsort(error, (size_t)g.n, sizeof(*error), by_value);
    assert_true(error[g.n / 2] <= 0.03);
    assert_true(error[g.n - 1] <= 0.1);
}

static void run_layers(int chunk)
{
    size_t row = (size_t)(g.hc * g.d), all = (size_t)g.n * row;
    uint16_t *out = calloc(all, sizeof(*out));
    struct status st;
    int n_layers = (int)g.streams->shape[0] - 1;

    for (int layer = 0; layer < n_layers; layer++) {
        const uint16_t *in = (const uint16_t *)g.streams->data + (size_t)layer * all;

        for (int start = 0; start < g.n; start += chunk) {
            int n = g.n - start < chunk ? g.n - start : chunk;
            struct model_span span = whole(start, n, MODEL_LOGITS_NONE);

            assert_int_equal(model_debug_layer(g.m, &g.kv, layer, &span, in + (size_t)start * row,
                                               out + (size_t)start * row, &st),
                             ST_OK);
        }
        check_layer(layer, out);
    }
    free(out);
}

static void golden_streams_pass_each_layer(void **state)
{
    (void)state;
    run_layers(g.n);
}

static void golden_streams_pass_each_layer_in_chunks_of_100(void **state)
{
    (void)state;
    run_layers(100);
}

static void golden_streams_pass_each_layer_token_by_token(void **state)
{
    (void)state;
    run_layers(1);
}

/* ---- state ---- */

static const struct tensor *state_tensor(const char *part, int layer)
{
    char name[64];

    snprintf(name, sizeof(name), layer < 0 ? "%s" : "%s.%d", part, layer);
    return safetensors_find(g.state, name);
}

static const uint8_t *slot_bytes(void)
{
    const uint8_t *slots = model_host_address(g.m, g.kv.slots);

    return slots + model_get_geometry(g.m)->slot_bytes;
}

/* Counts equal elements of a row that was unpacked to floats. */
static int equal_row(const float *got, const uint16_t *want, int n)
{
    int equal = 0;

    for (int i = 0; i < n; i++)
        equal += got[i] == bf16_decode(want[i]);
    return equal;
}

static void check_share(const char *what, int layer, long equal, long all)
{
    if (is_ref() ? equal != all : (double)equal < 0.99 * (double)all)
        fail_msg("%s of layer %d: %ld of %ld elements equal", what, layer, equal, all);
}

static void check_window(int layer, const struct tensor *want)
{
    const struct kv_geometry *geo = model_get_geometry(g.m);
    const struct model_config *c = model_get_config(g.m);
    const uint8_t *ring = slot_bytes() + geo->layers[layer].window_off;
    int first = g.n > c->window ? g.n - c->window : 0;
    long equal = 0;
    float x[4096];

    for (int p = first; p < g.n; p++) {
        kv_row_unpack(x, ring + (size_t)p % geo->window_rows * geo->row_bytes, c->head_dim,
                      c->rope_dim);
        equal +=
            equal_row(x, (const uint16_t *)want->data + p % c->window * c->head_dim, c->head_dim);
    }
    check_share("window", layer, equal, (long)(g.n - first) * c->head_dim);
}

static void check_entries(int layer, const struct tensor *want, bool keys)
{
    const struct kv_geometry *geo = model_get_geometry(g.m);
    const struct model_config *c = model_get_config(g.m);
    const struct kv_layer *l = &geo->layers[layer];
    const uint8_t *pages = model_host_address(g.m, g.kv.pages);
    int dim = keys ? c->index_head_dim : c->head_dim;
    long equal = 0, n = (long)want->shape[0];
    float x[4096];

    assert_int_equal(n, g.n / l->ratio);
    for (long e = 0; e < n; e++) {
        const uint8_t *page = pages + g.pages[e / l->entries] * geo->page_bytes;
        size_t row = (size_t)e % l->entries;

        if (keys)
            key_row_unpack(x, page + l->key_off + row * geo->key_bytes, dim);
        else
            kv_row_unpack(x, page + l->entry_off + row * geo->row_bytes, dim, c->rope_dim);
        equal += equal_row(x, (const uint16_t *)want->data + e * dim, dim);
    }
    check_share(keys ? "index keys" : "entries", layer, equal, n * dim);
}

/* The rows that are still read: the unfinished group and, for ratio 4, half of the one before. */
static void check_running(int layer, const struct tensor *kv, const struct tensor *score,
                          bool index)
{
    const struct kv_layer *l = &model_get_geometry(g.m)->layers[layer];
    const uint8_t *ring = slot_bytes() + (index ? l->index_comp_off : l->comp_off);
    size_t row_bytes = index ? l->index_comp_row_bytes : l->comp_row_bytes;
    int cols = (int)kv->shape[1], group = g.n / l->ratio * l->ratio;
    long equal = 0, all = 0;

    for (int p = l->ratio == 4 && group >= 4 ? group - 4 : group; p < g.n; p++) {
        const float *row = (const float *)(ring + (size_t)p % l->comp_rows * row_bytes);
        int at = l->ratio == 4 ? (p < group ? p % 4 : 4 + p % 4) : p % l->ratio;
        int used = l->ratio == 4 && p < group ? cols / 2 : cols;

        for (int i = 0; i < used; i++) {
            float a = ((const float *)kv->data)[at * cols + i];
            float b = ((const float *)score->data)[at * cols + i];

            /* f32 results of long sums: the oracle's own order of adding may show in the last bit.
             */
            equal += fabsf(row[i] - a) <= 1e-5f * (1 + fabsf(a)) &&
                     fabsf(row[cols + i] - b) <= 1e-5f * (1 + fabsf(b));
            all++;
        }
    }
    check_share(index ? "index compressor" : "compressor", layer, equal, all);
}

static void run_prompt(int chunk)
{
    const float *logits;
    struct status st;

    for (int start = 0; start < g.n; start += chunk) {
        int n = g.n - start < chunk ? g.n - start : chunk;
        struct model_span span = whole(start, n, MODEL_LOGITS_LAST);

        assert_int_equal(model_forward(g.m, &g.kv, &span, 1, &logits, &st), ST_OK);
    }
}

static void a_prompt_leaves_the_golden_state(void **state)
{
    const struct model_config *c = model_get_config(g.m);

    (void)state;
    if (!is_ref())
        skip(); /* state.safetensors is of a whole run, where flips breed flips */
    run_prompt(77);
    for (int i = 0; i < c->n_layers; i++) {
        check_window(i, state_tensor("window", i));
        if (c->compress_ratios[i] == 0)
            continue;
        check_entries(i, state_tensor("compressed.entries", i), false);
        check_running(i, state_tensor("compressed.kv", i), state_tensor("compressed.score", i),
                      false);
        if (c->compress_ratios[i] != 4)
            continue;
        check_entries(i, state_tensor("index.entries", i), true);
        check_running(i, state_tensor("index.kv", i), state_tensor("index.score", i), true);
    }
}

static void the_mtp_block_gives_the_golden_streams(void **state)
{
    const struct tensor *want = safetensors_find(g.layers, "mtp_streams");
    const struct tensor *next = safetensors_find(g.layers, "mtp_next_tokens");
    uint16_t *got = calloc(want->bytes, 1);
    const float *logits;
    struct status st;

    (void)state;
    if (!is_ref())
        skip();
    run_prompt(g.n);
    assert_int_equal(model_mtp(g.m, &g.kv, (const int32_t *)next->data, NULL, 0, &logits, &st),
                     ST_OK);
    assert_int_equal(model_debug_streams(g.m, true, got, &st), ST_OK);
    assert_memory_equal(got, want->data, want->bytes);
    check_window(model_get_config(g.m)->n_layers, state_tensor("mtp.window", -1));
    free(got);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_streams_pass_each_layer),
        cmocka_unit_test(golden_streams_pass_each_layer_in_chunks_of_100),
        cmocka_unit_test(golden_streams_pass_each_layer_token_by_token),
        cmocka_unit_test(a_prompt_leaves_the_golden_state),
        cmocka_unit_test(the_mtp_block_gives_the_golden_streams),
    };

    if (argc != 4)
        return 2;
    checkpoint = argv[1];
    vectors = argv[2];
    level = argv[3];
    return cmocka_run_group_tests_name("golden layers", tests, setup, teardown);
}
