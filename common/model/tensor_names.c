#include "common/model/tensor_names.h"

#include <string.h>

#include "common/base/buf.h"

/* Whole dot-separated parts. */
static const struct {
    const char *other, *released;
} parts[] = {
    {"self_attn", "attn"},
    {"mlp", "ffn"},
    {"weight_scale_inv", "scale"},
    {"e_score_correction_bias", "bias"},
    {"embed_tokens", "embed"},
    {"lm_head", "head"},
    {"input_layernorm", "attn_norm"},
    {"post_attention_layernorm", "ffn_norm"},
    {"gate_proj", "w1"},
    {"down_proj", "w2"},
    {"up_proj", "w3"},
};

static void append_part(struct buf *out, const char *part, size_t len)
{
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        if (strlen(parts[i].other) == len && memcmp(parts[i].other, part, len) == 0) {
            buf_puts(out, parts[i].released);
            return;
        }
    buf_append(out, part, len);
}

char *tensor_name_canonical(const char *name)
{
    struct buf out = {0};

    if (strncmp(name, "model.", 6) == 0)
        name += 6;
    for (;;) {
        size_t len = strcspn(name, ".");

        append_part(&out, name, len);
        if (name[len] == '\0')
            break;
        buf_puts(&out, ".");
        name += len + 1;
    }
    buf_cstr(&out);
    return out.data;
}
