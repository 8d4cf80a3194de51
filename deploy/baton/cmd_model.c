/*
 * baton checkpoint, baton demo-checkpoint: what a checkpoint directory holds, and making one.
 */
#include "deploy/baton/commands.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/base/file.h"
#include "common/base/flags.h"
#include "common/base/log.h"
#include "common/model/checkpoint_make.h"
#include "common/model/config.h"
#include "common/model/safetensors.h"
#include "common/model/weights.h"

enum { TOKENIZER_MAX = 256 << 20, DEMO_VOCAB = 129280 };

/* ---- baton checkpoint ---- */

static void print_config(const struct model_config *c)
{
    int n[3] = {0};

    for (int i = 0; i < c->n_layers; i++)
        n[c->compress_ratios[i] == 0 ? 0 : c->compress_ratios[i] == 4 ? 1 : 2]++;
    printf("layers            %d (%d window only, %d of ratio 4, %d of ratio 128), %d by hash; MTP "
           "blocks %d\n",
           c->n_layers, n[0], n[1], n[2], c->n_hash_layers, c->n_mtp);
    printf("hidden            %d in %d streams; heads %d x %d, %d rotated; q rank %d, o rank %d x "
           "%d\n",
           c->hidden_size, c->hc_mult, c->n_heads, c->head_dim, c->rope_dim, c->q_lora_rank,
           c->o_groups, c->o_lora_rank);
    printf("experts           %d, %d per token, inner %d; vocabulary %d; context %d\n",
           c->n_experts, c->n_active, c->moe_inter, c->vocab_size, c->max_position);
}

static enum status_code print_kv(const struct model_config *c, struct status *st)
{
    struct kv_geometry_params p = {
        c->n_layers + c->n_mtp, c->compress_ratios, c->head_dim, c->rope_dim,
        c->index_head_dim,      c->window};
    struct kv_geometry g;

    if (kv_geometry_init(&g, &p, st) != ST_OK)
        return st->code;
    printf("KV                page of %d tokens %" PRIu64 " bytes (%" PRIu64
           " a token), state of a sequence %" PRIu64 " bytes\n",
           KV_PAGE_TOKENS, g.page_bytes, g.page_bytes / KV_PAGE_TOKENS, g.slot_bytes);
    printf("KV all in         %" PRIu64
           " bytes a token of a request of 32768; a kept state %" PRIu64 " bytes\n",
           kv_bytes_per_token(&g, 32768), kv_snapshot_bytes(&g));
    printf("KV layout         %016" PRIx64 "\n", kv_geometry_fingerprint(&g));
    return status_ok(st);
}

static void print_tensors(const struct safetensors *s)
{
    uint64_t count[DTYPE_N] = {0}, bytes[DTYPE_N] = {0};
    size_t n;
    const struct tensor *t = safetensors_all(s, &n);

    for (size_t i = 0; i < n; i++) {
        count[t[i].dtype]++;
        bytes[t[i].dtype] += t[i].bytes;
    }
    for (int i = 0; i < DTYPE_N; i++)
        if (count[i] > 0)
            printf("%-9s         %" PRIu64 " tensors, %" PRIu64 " bytes\n",
                   dtype_name((enum st_dtype)i), count[i], bytes[i]);
}

int cmd_checkpoint(int argc, char **argv)
{
    const struct flag flags[] = {{0}};
    const char *dir = NULL;
    size_t n = 1;
    struct model_config config;
    struct safetensors *s = NULL;
    struct weights *w = NULL;
    struct status st;

    log_init("baton", LOG_WARN);
    if (flags_parse(flags, argc, argv, &n, &dir, &st) == ST_CANCELLED) {
        flags_help(flags,
                   "usage: baton checkpoint DIR\n\nLists what the directory holds and checks every "
                   "tensor against config.json.");
        return 0;
    }
    if (st.code == ST_OK && n == 0)
        status_set(&st, ST_INVALID, "a checkpoint directory is needed");
    if (st.code == ST_OK && model_config_read(dir, &config, &st) == ST_OK &&
        safetensors_open(dir, &s, &st) == ST_OK &&
        weights_load(s, &config, NULL, NULL, &w, &st) == ST_OK) {
        print_config(&config);
        print_tensors(s);
        if (print_kv(&config, &st) == ST_OK)
            printf("fingerprint       %016" PRIx64 "\nvalid\n", weights_fingerprint(s, &config));
    }
    weights_free(w);
    safetensors_close(s);
    if (st.code != ST_OK)
        fprintf(stderr, "baton checkpoint: %s\n", st.msg);
    return st.code == ST_OK ? 0 : 1;
}

/* ---- baton demo-checkpoint ---- */

static enum status_code write_text(const char *dir, const char *name, const void *data, size_t len,
                                   struct status *st)
{
    char path[4096];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "wb");
    if (f == NULL || fwrite(data, 1, len, f) != len || fclose(f) != 0)
        return status_set(st, ST_INVALID, "%s: %s", path, strerror(errno));
    return status_ok(st);
}

/* The text side of a release, as far as this project reads it. */
static enum status_code write_text_side(const char *dir, const char *tokenizer, struct status *st)
{
    static const char generation[] =
        "{\"bos_token_id\": 0, \"eos_token_id\": 1, \"do_sample\": true, \"temperature\": 1.0, "
        "\"top_p\": 1.0}\n";
    struct buf text = {0};

    if (write_text(dir, "generation_config.json", generation, sizeof(generation) - 1, st) !=
            ST_OK ||
        tokenizer == NULL)
        return st->code;
    if (file_read(tokenizer, TOKENIZER_MAX, &text, st) != ST_OK)
        status_wrap(st, "%s", tokenizer);
    else
        write_text(dir, "tokenizer.json", text.data, text.len, st);
    buf_deinit(&text);
    return st->code;
}

static enum checkpoint_experts experts_named(const char *name)
{
    return strcmp(name, "fp4") == 0   ? EXPERTS_FP4
           : strcmp(name, "fp8") == 0 ? EXPERTS_FP8
                                      : EXPERTS_FP8_CONVERTED;
}

int cmd_make_checkpoint(int argc, char **argv)
{
    const char *like = NULL, *experts = "fp4", *tokenizer = NULL, *dir = NULL;
    int64_t layers = 0, seed = -1;
    double scale = 1;
    const struct flag flags[] = {
        {"like", FLAG_CHOICE, &like, .choices = "flash|pro",
         .help = "whose heads, experts and pattern of layers it has"},
        {"layers", FLAG_INT, &layers, 0, 61, .arg = "N",
         .help = "only the first so many, and the MTP block; 0: all"},
        {"scale", FLAG_FLOAT, &scale, 0, 1, .arg = "S",
         .help = "share of the experts and of the vocabulary; each expert keeps its shape"},
        {"experts", FLAG_CHOICE, &experts, .choices = "fp4|fp8|fp8-converted",
         .help = "as the Instruct releases, as Base, or FP4 cast to FP8 without loss"},
        {"seed", FLAG_INT, &seed, -1, 9e15, .arg = "N", .help = "-1: the shape's own"},
        {"tokenizer", FLAG_STRING, &tokenizer, .arg = "FILE",
         .help = "copied in as tokenizer.json"},
        {0},
    };
    struct checkpoint_options opt;
    size_t n = 1;
    struct status st;

    log_init("baton", LOG_WARN);
    if (flags_parse(flags, argc, argv, &n, &dir, &st) == ST_CANCELLED) {
        flags_help(flags, "usage: baton make-checkpoint DIR --like flash|pro [flags]\n\nWrites a "
                          "random checkpoint of a release's geometry, for benchmarks and tests.");
        return 0;
    }
    if (st.code == ST_OK && (n == 0 || like == NULL))
        status_set(&st, ST_INVALID, "a directory to write and --like are needed");
    opt = (struct checkpoint_options){.preset = like,
                                      .experts = experts_named(experts),
                                      .n_layers = (int)layers,
                                      .scale = scale,
                                      .seed = seed};
    if (st.code == ST_OK && checkpoint_make(dir, &opt, &st) == ST_OK)
        write_text_side(dir, tokenizer, &st);
    if (st.code != ST_OK)
        fprintf(stderr, "baton make-checkpoint: %s\n", st.msg);
    return st.code == ST_OK ? 0 : 1;
}

int cmd_demo_checkpoint(int argc, char **argv)
{
    const char *preset = NULL, *experts = "fp4", *tokenizer = NULL, *dir = NULL;
    int64_t vocab = 0, seed = -1;
    const struct flag flags[] = {
        {"config", FLAG_CHOICE, &preset,
         .choices = "tiny|slim|flashlike|prolike|flashheads|proheads",
         .help =
             "its shape, with its own small vocabulary; absent: tiny with the real tokenizer's"},
        {"experts", FLAG_CHOICE, &experts, .choices = "fp4|fp8|fp8-converted",
         .help = "as the Instruct releases, as Base, or FP4 cast to FP8 without loss"},
        {"vocab-size", FLAG_INT, &vocab, 0, 1 << 24, .arg = "N", .help = "0: as said at --config"},
        {"seed", FLAG_INT, &seed, -1, 9e15, .arg = "N", .help = "-1: the shape's own"},
        {"tokenizer", FLAG_STRING, &tokenizer, .arg = "FILE",
         .help = "copied in as tokenizer.json"},
        {0},
    };
    struct checkpoint_options opt;
    size_t n = 1;
    struct status st;

    log_init("baton", LOG_WARN);
    if (flags_parse(flags, argc, argv, &n, &dir, &st) == ST_CANCELLED) {
        flags_help(
            flags,
            "usage: baton demo-checkpoint DIR [flags]\n\nWrites a small random checkpoint in the "
            "released format: the same bytes for the same flags, everywhere.");
        return 0;
    }
    if (st.code == ST_OK && n == 0)
        status_set(&st, ST_INVALID, "a directory to write is needed");
    opt = (struct checkpoint_options){
        .preset = preset != NULL ? preset : "tiny",
        .experts = experts_named(experts),
        .vocab_size = vocab > 0        ? (int)vocab
                      : preset == NULL ? DEMO_VOCAB
                                       : 0,
        .seed = seed,
    };
    if (st.code == ST_OK && checkpoint_make(dir, &opt, &st) == ST_OK)
        write_text_side(dir, tokenizer, &st);
    if (st.code != ST_OK)
        fprintf(stderr, "baton demo-checkpoint: %s\n", st.msg);
    return st.code == ST_OK ? 0 : 1;
}
