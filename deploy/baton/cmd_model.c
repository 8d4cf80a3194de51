/*
 * baton checkpoint, baton demo-checkpoint: what a checkpoint directory holds, and making one.
 */
#include "deploy/baton/commands.h"

int cmd_checkpoint(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    return 1;
}

int cmd_demo_checkpoint(int argc, char **argv)
{
    return cmd_checkpoint(argc, argv);
}
