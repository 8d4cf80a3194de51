#include "deploy/baton/commands.h"

int cmd_logits(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    return 1;
}

int cmd_checkpoint(int argc, char **argv)
{
    return cmd_logits(argc, argv);
}

int cmd_demo_checkpoint(int argc, char **argv)
{
    return cmd_logits(argc, argv);
}
