#include "common/transfer/part.h"

struct transfer_place transfer_part(struct transfer_piece *pieces, size_t n_pieces,
                                    uint32_t n_groups, struct transfer_place at, uint64_t at_least)
{
    struct transfer_place end = at;
    uint64_t bytes = 0;

    for (; end.group < n_groups && bytes < at_least; end.group++)
        for (; end.piece < n_pieces && pieces[end.piece].group == end.group; end.piece++)
            bytes += pieces[end.piece].bytes;
    for (size_t i = at.piece; i < end.piece; i++)
        pieces[i].group -= at.group;
    return end;
}
