package Serai::Pads;

# The `my` variables of a script, which is compiled as the body of a sub.
#
# Where a named sub uses a variable of the file, both must see the same one in
# each run, as they do in a program. Perl gives the body a new one when it is
# left, since somebody else refers to the old one. So that reference is not
# counted while the body is left (let_go, take_back): Perl clears the variable
# where it is, and the body keeps it.
#
# Nothing of that helps a variable whose scope is left before the file ends, or
# one with a value before the first run: then {why} is the reason for another
# way of running.

use v5.36;
use B ();

use constant { FAKE => B::SVf_FAKE, STATE => 2 };    # of PADNAME; STATE is PADNAMEt_STATE

sub new ($class, $path, $body, $subs, $ends) {
    my $self = bless { captured => [], scan => [], seen => {} }, $class;
    $self->{why} = $self->look($body, 1);
    for my $sub (@$subs, @$ends) {
        next if defined $self->{why} || $sub == $body;
        $self->{why} = $self->look($sub, 0, B::svref_2object($sub)->FILE ne $path);
    }
    $self->{why} //= 'an END block is to see the variables of the file' if @$ends && @{ $self->{captured} };
    delete $self->{seen};
    return $self;
}

# look finds what a sub's variables ask for; it returns the reason why that
# cannot be given. Foreign is a sub from another file.
sub look ($self, $sub, $is_body, $foreign = 0) {
    my $cv = B::svref_2object($sub);
    return if $cv->XSUB || $self->{seen}{$$cv}++ || ref $cv->PADLIST ne 'B::PADLIST';
    return if $foreign && $cv->FILE =~ /\.pm\z/;
    return 'it has a flip-flop operator' if $cv->ROOT->isa('B::OP') && flips($cv->ROOT);
    my @names = $cv->PADLIST->ARRAYelt(0)->ARRAY;
    my $pad = $cv->PADLIST->ARRAYelt(1)->object_2svref;
    my @mine = grep { ref $names[$_] eq 'B::PADNAME' && ($names[$_]->PV // '') =~ /\A(?:[\$\@%]\w|&)/ } 0 .. $#names;
    my $end = 0;
    for (@mine) { $end = $names[$_]->COP_SEQ_RANGE_HIGH if $names[$_]->PV eq '$serai_end' }
    my @scan;
    for my $i (@mine) {
        my ($name, $flags) = ($names[$i]->PV, $names[$i]->FLAGS);
        if ($name =~ /\A&/) {
            return "it keeps the sub $name with state" if $flags & STATE;
            my $inner = \$pad->[$i];
            my $why = ref $inner eq 'CODE' ? $self->look($inner, 0, $foreign) : undef;
            return $why if defined $why;
            next;
        }
        next if $names[$i]->OURSTASH->isa('B::HV');
        return "$name is kept with state" if $flags & STATE;
        if ($flags & FAKE) {
            return "a sub of another file keeps $name" if $foreign;
            next;
        }
        my $variable = \$pad->[$i];
        my $users = &Internals::SvREFCNT($variable) - 1;
        return "BEGIN gives $name a value" if filled($variable);
        if ($users) {
            return "a sub within a sub uses its variable $name" if !$is_body;
            return "a sub uses $name of the block around it" if $names[$i]->COP_SEQ_RANGE_HIGH != $end;
            push @{ $self->{captured} }, { pad => $pad, at => $i, is => $variable };
        }
        else { push @scan, $i }
    }
    push @{ $self->{scan} }, [$pad, @scan] if @scan;
    return;
}

# flips says whether code has a range in scalar context, which remembers that
# it is within it.
sub flips ($op) {
    return 1 if $op->name eq 'range' && ($op->flags & B::OPf_WANT) == B::OPf_WANT_SCALAR;
    return 0 if !($op->flags & B::OPf_KIDS);
    for (my $kid = $op->first; $$kid; $kid = $kid->sibling) { return 1 if flips($kid) }
    return 0;
}

sub filled ($variable) {
    my $kind = ref $variable;
    return $kind eq 'ARRAY' ? @$variable : $kind eq 'HASH' ? %$variable : $kind =~ /\A(?:SCALAR|REF|VSTRING|GLOB|LVALUE|REGEXP)\z/ && defined $$variable;
}

sub clear ($variable) {
    if (ref $variable eq 'ARRAY') { @$variable = () }
    elsif (ref $variable eq 'HASH') { %$variable = () }
    else { undef $$variable }
}

# let_go is called at the end of the body, before it is left.
sub let_go ($self) {
    return if $self->{let_go};
    $self->{let_go} = 1;
    for my $c (@{ $self->{captured} }) {
        $c->{users} = &Internals::SvREFCNT($c->{is});
        &Internals::SvREFCNT($c->{is}, 0);    # and the body's own
    }
}

# take_back is called when the body has been left. It says whether the next run
# will find the variables as the first one did.
sub take_back ($self) {
    my $whole = 1;
    for my $c (@{ $self->{captured} }) {
        &Internals::SvREFCNT($c->{is}, &Internals::SvREFCNT($c->{is}) + $c->{users}) if $self->{let_go};
        clear($c->{is}) if filled($c->{is});
        $whole = 0 if \$c->{pad}[ $c->{at} ] != $c->{is};
    }
    $self->{let_go} = 0;
    # A `my` with a condition keeps its value where the condition was false.
    for my $list (@{ $self->{scan} }) {
        my ($pad, @at) = @$list;
        for my $i (@at) {
            my $variable = \$pad->[$i];
            clear($variable) if filled($variable);
        }
    }
    return $whole;
}

1;
