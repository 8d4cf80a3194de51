/*
 * commands: what `baton NAME ...` can be. Each returns the process's exit status and prints its own
 * errors to standard error; argv[0] is the command's name.
 */
#ifndef BATON_DEPLOY_BATON_COMMANDS_H
#define BATON_DEPLOY_BATON_COMMANDS_H

/* cmd_text.c: JSON lines in, JSON lines out */
int cmd_encode(int argc, char **argv);

/* cmd_parse.c: the same */
int cmd_parse(int argc, char **argv);

/* cmd_tokenize.c: the same */
int cmd_tokenize(int argc, char **argv);
int cmd_detokenize(int argc, char **argv);

/* cmd_bench_engine.c */
int cmd_bench_engine(int argc, char **argv);

/* cmd_bench_kernels.c */
int cmd_bench_kernels(int argc, char **argv);

/* cmd_bench_kv.c */
int cmd_bench_kv(int argc, char **argv);

/* cmd_bench_sampler.c */
int cmd_bench_sampler(int argc, char **argv);

/* cmd_bench_text.c */
int cmd_bench_text(int argc, char **argv);

/* cmd_chat.c */
int cmd_chat(int argc, char **argv);

/* cmd_generate.c */
int cmd_generate(int argc, char **argv);

/* cmd_model.c */
int cmd_logits(int argc, char **argv);
int cmd_checkpoint(int argc, char **argv);
int cmd_demo_checkpoint(int argc, char **argv);
int cmd_make_checkpoint(int argc, char **argv);

#endif
