"""The inner loops, compiled by numba: pure functions of arrays.

Throughout, f = l + B x are the *fields*. With them

    pruning a kept i costs     p_i = f_i + 1/2 B_ii
    restoring a pruned j costs q_j = 1/2 B_jj - f_j
    doing both costs           p_i + q_j - B_ij

Where B is dense, the fields are kept up to date as x moves: a proposal takes O(1) and an accepted
swap O(n). Where B = U U' is given by factors [n, s], the *response* z = U'x is, and
f_i = l_i + U_i.z: both take O(s), and no n x n matrix is formed.

An assignment is an *order* of the variables: group by group, and within a group the pruned
ones first. Counts never change, so a place in the order (a *slot*) is for ever a pruned or a
kept one, and a swap exchanges the variables in two slots.

numba keeps compiled kernels beside these files, and does not see when a kernel that another file's
kernel calls was changed: after editing one, delete the folder's __pycache__.
"""
