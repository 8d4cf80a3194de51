/*
 * turn: where in its turn the model is when generation begins. The renderer that wrote the end of
 * the prompt says it, the parser of the output begins there; nobody guesses.
 */
#ifndef BATON_COMMON_TEXT_TURN_H
#define BATON_COMMON_TEXT_TURN_H

enum turn_start {
    TURN_CONTENT,   /* the prompt ends with </think>, a task or continued content */
    TURN_REASONING, /* the prompt ends with <think>, or in continued reasoning */
    TURN_TOOL_CALLS /* the prompt ends with an opened tool-call block */
};

/** "content", "reasoning", "tool_calls". */
static inline const char *turn_start_name(enum turn_start start)
{
    return start == TURN_CONTENT ? "content" : start == TURN_REASONING ? "reasoning" : "tool_calls";
}

#endif
