/*
 * baton: the command-line tool that people debug with.
 */
#include "deploy/baton/commands.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"chat", cmd_chat, "one streaming chat request to a router"},
    {"generate", cmd_generate, "token ids straight to a decode worker (JSON lines)"},
    {"encode", cmd_encode, "chat requests to prompts (JSON lines)"},
    {"tokenize", cmd_tokenize, "text to token ids (JSON lines)"},
    {"detokenize", cmd_detokenize, "token ids to text, as a stream shows it (JSON lines)"},
    {"parse", cmd_parse, "model output to reasoning, content and tool calls (JSON lines)"},
    {"bench-engine", cmd_bench_engine,
     "decode and prefill of a checkpoint, as a share of what this machine can reach"},
    {"bench-kernels", cmd_bench_kernels,
     "CPU operations, as a share of what this machine can reach"},
    {"bench-kv", cmd_bench_kv, "how fast KV pages move between two processes or hosts"},
    {"bench-sampler", cmd_bench_sampler, "drawing one token from a row of logits, beside a memcpy"},
    {"bench-text", cmd_bench_text, "how fast text is tokenized, rendered and parsed here"},
    {"logits", cmd_logits, "runs a checkpoint over tokens: logits, greedy continuation, MTP"},
    {"checkpoint", cmd_checkpoint, "lists and validates a checkpoint directory"},
    {"make-checkpoint", cmd_make_checkpoint,
     "write a random checkpoint with the geometry of V4-Flash or V4-Pro"},
    {"demo-checkpoint", cmd_demo_checkpoint,
     "writes a small random checkpoint in the released format"},
};

enum { N_COMMANDS = sizeof(commands) / sizeof(commands[0]) };

static void usage(FILE *f)
{
    fprintf(f, "usage: baton COMMAND [flags]     (baton COMMAND --help)\n\n");
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(f, "  %-16s %s\n", commands[i].name, commands[i].help);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        usage(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        usage(stdout);
        return 0;
    }
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    fprintf(stderr, "baton: no command '%s'\n\n", argv[1]);
    usage(stderr);
    return 2;
}
