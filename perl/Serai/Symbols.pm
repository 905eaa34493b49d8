package Serai::Symbols;

# The names that a script makes. A script is package main, as a program is, and
# finds nobody else's names there: before another one's turn its names are
# taken out of the symbol table, with the packages that its file makes, and put
# back before its own. Its code is bound to the globs themselves and does not
# notice.

use v5.36;
use feature 'refaliasing';
no warnings qw(experimental::refaliasing once redefine prototype untie);
use B ();
use mro ();

use constant IMPORTED => 0xF0;    # GVf_IMPORTED of gv.h
use constant WATCHED_MAX => 200;  # elements of another package's array or hash that are put back

my %OF_PERL = map { $_ => 1 } qw(ENV INC SIG ARGV ARGVOUT STDIN STDOUT STDERR _);
my %SHARED;    # names of main that a module's code is bound to → what they held at first
my $shown;     # whose names are in the table

# begin hides what a startup file and the engine made in main.
sub begin () {
    $shown = bless { names => {} }, __PACKAGE__;
    $shown->{names}{$_} = glob_of("main::$_") for grep { !shared($_) } names();
    $shown->hide;
}

# clear hides whatever is shown.
sub clear () { $shown->hide if $shown }

# names are those of main that are neither perl's nor a package.
sub names () { return grep { !$OF_PERL{$_} && /\A(?!\d)\w+\z/ } keys %main:: }

# glob_of gives a reference to a glob; what Perl keeps in a shorter form
# becomes one.
sub glob_of ($name) {
    no strict 'refs';
    return \*{$name};
}

# shared says whether a name of main came with the code of a module, which would
# go on to use the glob that it is bound to.
sub shared ($name) {
    return 1 if $SHARED{$name};
    my $glob = B::svref_2object(glob_of("main::$name"));
    return 0 if $glob->GvFLAGS & IMPORTED || $glob->FILE !~ /\.pm\z/ || $glob->FILE =~ m{/(?:constant|Serai/\w+)\.pm\z};
    $SHARED{$name} = held(glob_of("main::$name"));
    return 1;
}

# taken gives the names that a file has just made, and shows them. Its text
# names packages, and declares some; and variables of other packages.
sub taken ($class, $path, $packages, $declared, $variables) {
    my $self = bless { names => { map { $_ => glob_of("main::$_") } grep { !shared($_) } names() }, packages => {}, plan => [] }, $class;
    for my $package (sort grep { !/\A(?:main|DB|CORE|UNIVERSAL|Internals|Serai)(?:::|\z)/ } @$packages) {
        my ($parent, $last) = "main::$package" =~ /\A(.*::)(\w+)\z/ or next;
        no strict 'refs';
        next if !exists ${$parent}{"$last\::"} || grep { $package =~ /\A\Q$_\E::/ } keys %{ $self->{packages} };
        $self->{packages}{$package} = [$parent, "$last\::", *{"$parent$last\::"}] if made_by($path, "main::$package\::", $declared->{$package});
    }
    $self->{plan} = [map { held($_) } values %{ $self->{names} }, map { globs("main::$_\::") } keys %{ $self->{packages} }];
    for my $variable (@$variables) {
        my ($sigil, $package, $name) = $variable =~ /\A(.)(.*)::(\w+)\z/ or next;
        next if $package =~ /\A(?:main)?\z/ || grep { "$package\::" =~ /\A\Q$_\E::/ } keys %{ $self->{packages} };
        push @{ $self->{plan} }, watched($sigil, "$package\::$name") // ();
    }
    $self->{size} = keys %main::;
    no strict 'refs';
    for my $package (keys %{ $self->{packages} }) {
        $self->{members}{$package} = { map { $_ => 1 } keys %{"main::$package\::"} };
        $self->{sizes}{$package} = keys %{"main::$package\::"};
    }
    return $shown = $self;
}

# made_by says whether a package is a file's own: all subs that were compiled in
# it come from there, or, where it has none, it is declared there.
sub made_by ($path, $stash, $declared) {
    no strict 'refs';
    for my $name (grep { !/::\z/ } keys %$stash) {
        my $sub = *{ glob_of("$stash$name") }{CODE};
        next if !$sub || !defined &$sub;    # declared for an import
        my $code = B::svref_2object($sub);
        my $file = $code->FILE // '';
        if ($file eq $path || $file =~ /\A\(eval \d+\)/) { $declared = 1 }
        elsif ($code->STASH->isa('B::HV') && 'main::' . $code->STASH->NAME . '::' eq $stash) { return 0 }
    }
    return $declared;
}

# globs are those of a package and the packages within it.
sub globs ($stash) {
    no strict 'refs';
    return map { /::\z/ ? $_ eq 'main::' ? () : globs("$stash$_") : glob_of("$stash$_") } keys %$stash;
}

# held notes what a glob holds.
sub held ($glob) {
    my %is = (glob => $glob, scalar => *$glob{SCALAR}, array => *$glob{ARRAY}, hash => *$glob{HASH}, code => *$glob{CODE}, io => *$glob{IO});
    $is{declared} = $is{code} && !defined &{ $is{code} };
    $is{constant} = Internals::SvREADONLY(${ $is{scalar} }) || magical($is{scalar});
    # Names that English has for variables of Perl's own are not the script's.
    for my $kind (qw(array hash)) {
        next if !$is{$kind} || *$glob{NAME} eq 'ISA' || !magical($is{$kind});
        delete $is{$kind};
        $is{"no_$kind"} = 1;
    }
    $is{value}  = ${ $is{scalar} };
    $is{values} = [@{ $is{array} }] if $is{array} && @{ $is{array} };
    $is{pairs}  = { %{ $is{hash} } } if $is{hash} && %{ $is{hash} };
    return \%is;
}

sub magical ($variable) { return B::svref_2object($variable)->FLAGS & (B::SVs_GMG | B::SVs_SMG | B::SVs_RMG) }

# watched notes what a variable of somebody else's package holds.
sub watched ($sigil, $name) {
    no strict 'refs';
    return if $name =~ /\A(?:CORE|Serai)::/;
    my $glob = glob_of($name);
    if ($sigil eq '$' && !Internals::SvREADONLY($$name)) { return { glob => $glob, scalar => \$$name, value => $$name } }
    if ($sigil eq '@' && @$name < WATCHED_MAX) { return { glob => $glob, array => \@$name, values => [@$name] } }
    if ($sigil eq '%' && %$name < WATCHED_MAX) { return { glob => $glob, hash => \%$name, pairs => {%$name} } }
    return;
}

# subs are those that the names have: code references.
sub subs ($self) { return [grep { defined } map { $_->{code} } @{ $self->{plan} }] }

# structure says which variable, if any, holds a reference already: what lies
# behind that is not put back.
sub structure ($self) {
    for my $is (@{ $self->{plan} }) {
        next if !$is->{glob} || !exists $is->{io} || B::svref_2object($is->{glob})->GvFLAGS & IMPORTED;
        for (['$', $is->{constant} ? undef : $is->{value}], ['@', @{ $is->{values} // [] }], ['%', values %{ $is->{pairs} // {} }]) {
            my ($sigil, @values) = @$_;
            next if !grep { ref && ref ne 'CODE' && ref ne 'GLOB' } @values;
            return "BEGIN makes what $sigil" . *{ $is->{glob} }{NAME} . ' holds';
        }
    }
    return;
}

# show puts the names into the table.
sub show ($self) {
    return if $shown && $shown == $self;
    clear();
    \$main::{$_} = $self->{names}{$_} for keys %{ $self->{names} };
    no strict 'refs';
    for (values %{ $self->{packages} }) {
        my ($parent, $last, $glob) = @$_;
        *{"$parent$last"} = $glob;
    }
    mro::method_changed_in('main');
    $self->{size} = keys %main::;
    $shown = $self;
}

sub hide ($self) {
    delete @main::{ keys %{ $self->{names} } };
    no strict 'refs';
    delete ${ $_->[0] }{ $_->[1] } for values %{ $self->{packages} };
    undef $shown;
}

# forget puts all back as it was when the file had been compiled: what a run set
# and made, and what it opened. It says whether that could be done.
sub forget ($self) {
    my $whole = 1;
    for my $is (@{ $self->{plan} }, values %SHARED) {
        $whole &= restore_slots($is) if exists $is->{io};
        if ($is->{scalar} && !$is->{constant}) {
            untie ${ $is->{scalar} } if tied ${ $is->{scalar} };
            ${ $is->{scalar} } = $is->{value};
        }
        if ($is->{array}) {
            untie @{ $is->{array} } if tied @{ $is->{array} };
            my $values = $is->{values} // [];
            @{ $is->{array} } = @$values if (@$values || @{ $is->{array} }) && !same($is->{array}, $values);
        }
        if ($is->{hash}) {
            untie %{ $is->{hash} } if tied %{ $is->{hash} };
            %{ $is->{hash} } = %{ $is->{pairs} // {} };
        }
    }
    remove_new('main::', $self->{names}, \$self->{size});
    for my $package (keys %{ $self->{packages} }) {
        remove_new("main::$package\::", $self->{members}{$package}, \$self->{sizes}{$package});
    }
    return $whole;
}

# restore_slots puts back what a run has put into a glob in place of what was there.
sub restore_slots ($is) {
    my $glob = $is->{glob};
    my $whole = 1;
    my $code = *$glob{CODE};
    if ($is->{code}) {
        if (!defined &{ $is->{code} } && !$is->{declared}) { $whole = 0 }
        elsif (!$code || $code != $is->{code}) { *$glob = $is->{code} }
    }
    elsif ($code) { undef *$glob }    # nothing else takes a sub out of a glob
    my $io = *$glob{IO};
    close $io if $io && defined fileno $io;
    *$glob = $is->{scalar} if \${*$glob} != $is->{scalar};
    for my $kind (qw(array hash)) {
        my $now = *$glob{ uc $kind };
        if ($is->{$kind}) { *$glob = $is->{$kind} if !$now || $now != $is->{$kind} }
        elsif ($now && !$is->{"no_$kind"}) { $is->{$kind} = $now }
    }
    return $whole;
}

# remove_new takes out the names that a run has made.
sub remove_new ($stash, $known, $size) {
    no strict 'refs';
    return if $$size == keys %$stash;
    for my $name ($stash eq 'main::' ? grep { !$known->{$_} && !shared($_) } names() : grep { !$known->{$_} && !/::\z/ } keys %$stash) {
        my $glob = glob_of("$stash$name");
        close *$glob{IO} if *$glob{IO} && defined fileno *$glob{IO};
        undef *$glob;
        delete $stash->{$name};
    }
    $$size = keys %$stash;
}

# wipe empties a package, but not those within it.
sub wipe ($package) {
    no strict 'refs';
    my $stash = "main::$package\::";
    for my $name (grep { !/::\z/ } keys %$stash) {
        undef *{ glob_of("$stash$name") };
        delete $stash->{$name};
    }
}

sub same ($left, $right) {
    return 0 if @$left != @$right;
    for (keys @$left) {
        my ($l, $r) = ($left->[$_], $right->[$_]);
        return 0 if defined $l != defined $r || defined $l && (ref $l || $l ne $r);
    }
    return 1;
}

# discard frees what a script that is to be compiled anew has made.
sub discard ($self) {
    $self->show;
    my @globs = map { globs("main::$_\::") } keys %{ $self->{packages} };
    $self->hide;
    for my $glob (values %{ $self->{names} }, @globs) { undef *$glob }
    delete @$self{qw(names packages members plan)};
}

1;
