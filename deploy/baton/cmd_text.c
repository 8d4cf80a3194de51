#include "deploy/baton/commands.h"

int cmd_encode(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    return 1;
}

int cmd_tokenize(int argc, char **argv)
{
    return cmd_encode(argc, argv);
}

int cmd_detokenize(int argc, char **argv)
{
    return cmd_encode(argc, argv);
}

int cmd_parse(int argc, char **argv)
{
    return cmd_encode(argc, argv);
}
